"""Any classifier of timm, fitted to the data, and `SmallCNN` for small images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import timm
import timm.data
import torch
from timm.models import register_model
from torch import Tensor, nn

from neumann.bounds import as_yaml
from neumann.errors import UserError, did_you_mean, first_line
from neumann.models import cifar_resnets, mlp  # noqa: F401 - they register models with timm
from neumann.models.timm_arguments import check_weights, names_a_file, own_settings
from neumann.models.unused_settings import check_settings, wrong_setting
from neumann.network import hub_that_answers
from neumann.refusals import as_raised


class SmallCNN(nn.Module):
    """Three 3×3 convolutions with batch norm, average pooling and a linear head: 57 k parameters at width 32.

    Args:
        in_chans: channels of the images.
        num_classes: number of logits.
        width: channels of the first convolution; the others have twice as many.
        drop_rate: share of the pooled features that dropout sets to zero in training.
    """

    def __init__(self, in_chans: int = 1, num_classes: int = 10, width: int = 32, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes

        def block(inputs: int, outputs: int) -> list[nn.Module]:
            return [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]

        self.features = nn.Sequential(
            *block(in_chans, width), *block(width, 2 * width), nn.MaxPool2d(2), *block(2 * width, 2 * width)
        )
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, num_classes] of images [B, in_chans, H, W], H and W at least 2."""
        pooled: Tensor = self.features(x).mean(dim=(2, 3))
        logits: Tensor = self.head(self.drop(pooled))
        return logits


@register_model
def small_cnn(**kwargs: Any) -> SmallCNN:
    """Return a `SmallCNN` of ``kwargs``; timm's factory makes it by this name."""
    return SmallCNN(**own_settings("small_cnn", kwargs))


class WeightsMissingError(UserError):
    """Pretrained weights are not on this machine and cannot be fetched, whatever else the model is given."""


def build_model(
    name: str,
    kwargs: Mapping[str, Any],
    *,
    in_chans: int,
    num_classes: int,
    image_size: tuple[int, int],
    auxiliary_head: bool = False,
    channels_last: bool = False,
) -> nn.Module:
    """Return timm's model ``name`` with its first and last layer fitted to the data, tried on two blank images.

    Args:
        name: the model, as timm's factory knows it.
        kwargs: further settings of the model.
        in_chans: channels of the images.
        num_classes: number of classes.
        image_size: (height, width) of the images in pixels.
        auxiliary_head: the model returns the logits of an auxiliary head beside its own.
        channels_last: the memory format of its weights, which its activations follow.

    Raises UserError for an unknown name (with the nearest), settings that the model does not take or makes nothing of,
    images that it cannot take, and models that return anything but logits [B, num_classes], or two such tensors with
    ``auxiliary_head``.
    """
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models())
        raise UserError(f"model.name={name}: timm has no such model: {near}")
    _, _, tag = name.partition(".")
    if tag and not any(kwargs.get(key) for key in ("pretrained", "checkpoint_path")):
        raise UserError(
            f"model.name={name} names the pretrained weights '{tag}', and this run would begin at random ones: add "
            f"+model.kwargs.pretrained=true, or write model.name={name.partition('.')[0]}"
        )
    for fitted in ("num_classes", "in_chans"):
        if fitted in kwargs:
            raise UserError(f"model.kwargs.{fitted} is fitted to the data and cannot be set")
    check_weights(kwargs)
    settings = {"in_chans": in_chans, "num_classes": num_classes, **kwargs}
    attempts = [settings]
    if "img_size" not in kwargs:  # transformers are made for one size
        square = image_size[0] == image_size[1]
        attempts.append({**settings, "img_size": image_size[0] if square else image_size})
    first: UserError | None = None
    for attempt in attempts:
        try:
            model = _make(name, attempt, kwargs)
            out = _tried(model, name, in_chans, image_size)
            first = None  # it takes the images, so what is wrong with it is something else
            if channels_last:
                _use_channels_last(model, name, in_chans, image_size)
            _check_logits(out, name, num_classes, auxiliary_head)
            check_settings(name, attempt, kwargs, model, image_size)
            return model
        except WeightsMissingError:
            raise
        except UserError as error:
            first = first or error
    assert first is not None
    raise first


def own_statistics(model: nn.Module, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel (0 to 1) of the images that timm's ``model`` was pretrained on.

    For grey images both are the means over RGB, since timm sums the first layer's weights over RGB.
    """
    config = timm.data.resolve_model_data_config(model)
    mean, std = (tuple(float(value) for value in config[name]) for name in ("mean", "std"))
    return (mean, std) if channels == len(mean) else ((sum(mean) / len(mean),), (sum(std) / len(std),))


def _make(name: str, settings: Mapping[str, Any], kwargs: Mapping[str, Any]) -> nn.Module:
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it tells each of its tries to reach the network
    fetched = kwargs.get("pretrained") and not names_a_file(kwargs)
    why = None
    try:
        with hub_that_answers() if fetched else nullcontext() as why:
            model: nn.Module = timm.create_model(name, **settings)
    except UserError:
        raise
    except OSError as error:
        if not fetched:
            raise _unmakeable(name, kwargs, error) from error
        config = timm.models.get_pretrained_cfg(name)
        place = (
            f"{config.hf_hub_id} of the Hugging Face Hub" if config and config.hf_hub_id else "those that timm names"
        )
        raise WeightsMissingError(
            f"model.name={name}: its pretrained weights, {place}, are not in the cache of this machine and cannot be "
            f"fetched{f' ({why})' if why else ''}: get model.safetensors from there where there is a network, and add "
            "'+model.kwargs.pretrained_cfg_overlay={file:/path/to/model.safetensors}'"
        ) from error
    except Exception as error:  # each of timm's models refuses by an exception of its own
        if (sentence := wrong_setting(name, settings, kwargs, error)) is not None:
            raise UserError(sentence) from error
        raise _unmakeable(name, kwargs, error) from error
    return model


def _unmakeable(name: str, kwargs: Mapping[str, Any], error: Exception) -> UserError:
    given = ", ".join(f"{k}={as_yaml(v)}" for k, v in kwargs.items()) or "its defaults"
    return UserError(f"model.name={name} cannot be made with {given}: {as_raised(error)}")


def _tried(model: nn.Module, name: str, in_chans: int, image_size: tuple[int, int]) -> Any:
    """Return what ``model`` answers to two blank images."""
    size = "×".join(str(s) for s in image_size)
    model.eval()  # so that blank images leave no trace in batch norm's statistics
    try:
        with torch.no_grad():
            out = model(torch.zeros(2, in_chans, *image_size))
    except Exception as error:  # each network fails on a wrong size by an exception of its own
        reason = first_line(error)
        raise UserError(
            f"model.name={name} cannot take images of {size} ({reason}): set data.image_size or another model"
        ) from error
    model.train()
    return out


def _use_channels_last(model: nn.Module, name: str, in_chans: int, image_size: tuple[int, int]) -> None:
    """Put the weights of ``model`` into that memory format, in place; raise UserError where it cannot compute in it."""
    model.to(memory_format=torch.channels_last)
    try:
        _tried(model, name, in_chans, image_size)
    except UserError as error:  # it views its activations pixel by pixel
        reason = first_line(error.__cause__ or error)
        raise UserError(
            f"model.name={name} cannot compute in model.channels_last=true ({reason}): set it to false"
        ) from error


def _check_logits(out: Any, name: str, num_classes: int, auxiliary_head: bool) -> None:
    """Raise UserError unless a model's answer ``out`` is the logits of two images, or of two heads where it should."""

    def logits(value: Any) -> bool:
        return isinstance(value, Tensor) and value.shape == (2, num_classes)

    two_heads = isinstance(out, tuple) and len(out) == 2 and all(logits(head) for head in out)
    if two_heads and not auxiliary_head:
        raise UserError(
            f"model.name={name} returns the logits of an auxiliary head too: set model.auxiliary_weight, its weight in "
            "the loss, or leave the head out"
        )
    if auxiliary_head and logits(out):
        raise UserError(
            f"model.auxiliary_weight is set and model.name={name} has no auxiliary head: leave it at null (timm's "
            "inception_v3 has one with +model.kwargs.aux_logits=true)"
        )
    if not two_heads and not logits(out):
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UserError(
            f"model.name={name} returns {shape} where logits [batch, {num_classes}] are needed: is it a classifier?"
        )
