"""Tests of timm's classifiers: fitted to the data, or refused in one sentence."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from timm.models import register_model

from neumann.errors import UserError
from neumann.models import classifiers
from neumann.models.classifiers import SmallCNN, build_model
from neumann.models.timm_arguments import own_settings


class Deaf(SmallCNN):
    """Takes settings of any name, and makes something of three of them."""

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 10,
        width: int = 4,
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        stem: str = "conv",
        **others: Any,
    ) -> None:
        super().__init__(in_chans, num_classes, width, drop_rate)
        self.act = torch.nn.Dropout(attn_drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.act(x))


@register_model
def deaf(**kwargs: Any) -> Deaf:
    """Return a `Deaf` of ``kwargs``."""
    return Deaf(**own_settings("deaf", kwargs))


@pytest.mark.parametrize(
    ("name", "size"), [("small_cnn", 8), ("resnet18", 32), ("vit_tiny_patch16_224", 32), ("mobilenetv3_small_050", 32)]
)
def test_first_and_last_layer_are_fitted(name: str, size: int) -> None:
    model = build_model(name, {}, in_chans=1, num_classes=7, image_size=(size, size))
    assert model.training
    assert model.eval()(torch.zeros(3, 1, size, size)).shape == (3, 7)


def test_the_small_network_has_the_size_that_its_yaml_names() -> None:
    model = build_model("small_cnn", {}, in_chans=1, num_classes=10, image_size=(8, 8))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(57_000, rel=0.02)


def test_trying_the_model_leaves_its_batch_statistics_alone() -> None:
    model = build_model("small_cnn", {}, in_chans=1, num_classes=10, image_size=(8, 8))
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [0, 0, 0]
    assert all(torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean)) for norm in norms)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        ("resnet18.a1_in1k", {}, "names the pretrained weights 'a1_in1k', and this run would begin at random ones"),
        ("resnet18.a1_in1k", {"pretrained": False}, "or write model.name=resnet18"),
        ("resnet81", {}, "timm has no such model: did you mean 'resnet18'?"),
        ("vgg11", {}, "cannot take images of 8×8"),
        ("resnet18", {"colour": 3}, "has no setting colour: choose from aa_layer"),
        ("resnet18", {"drop_path": 0.1}, "has no setting drop_path: did you mean 'drop_path_rate'?"),
        ("resnet18", {"label_smoothing": 0.1}, "did you mean 'recipe.label_smoothing'?"),
        ("small_cnn", {"drop_path_rate": 0.1}, "has no setting drop_path_rate: did you mean 'drop_rate'?"),
        (
            "resnet18",
            {"pretrained_cfg_overlay": {"file": "a"}},
            "none are loaded without +model.kwargs.pretrained=true",
        ),
        ("resnet18", {"pretrained": True, "checkpoint_path": "a"}, "both name weights to start from"),
        ("resnet18", {"num_classes": 3}, "model.kwargs.num_classes is fitted to the data"),
        ("resnet18", {"features_only": True}, "returns list where logits [batch, 10] are needed"),
        ("small_cnn", {"pretrained": True}, "no pretrained weights"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(name: str, kwargs: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        build_model(name, kwargs, in_chans=1, num_classes=10, image_size=(8, 8))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        # none of its few blocks has a shortcut beside it
        (
            "test_efficientnet",
            {"drop_path_rate": 0.1},
            "takes it and makes nothing of it: leave it out, or set drop_rate",
        ),
        (
            "deaf",
            {"drop_path_rate": 0.1, "width": 8},
            "model.kwargs.drop_path_rate=0.1: model.name=deaf takes it and makes nothing of it: leave it out, or set "
            "attn_drop_rate or drop_rate",
        ),
        (
            "deaf",
            {"wdth": 8},
            "model.name=deaf takes settings of any name, and has none of this: did you mean 'width'?",
        ),
        ("deaf", {"smoothing": 0.1}, "did you mean 'recipe.label_smoothing'?"),
    ],
)
def test_a_setting_that_a_network_makes_nothing_of_is_refused(
    name: str, kwargs: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        build_model(name, kwargs, in_chans=1, num_classes=10, image_size=(32, 32))
    assert sentence in str(caught.value)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("deaf", {"drop_rate": 0.2, "width": 8, "attn_drop_rate": 0.1}),  # the first is its default
        ("deaf", {"drop_path_rate": 0.0, "wdth": None}),  # asked for nothing
        ("test_resnet", {"drop_path_rate": 0.1, "drop_rate": 0.1, "drop_block_rate": 0.1, "stem_width": 8}),
        ("test_vit", {"drop_path_rate": 0.1, "attn_drop_rate": 0.1, "proj_drop_rate": 0.1, "patch_drop_rate": 0.1}),
        ("test_efficientnet", {"drop_rate": 0.1, "bn_momentum": 0.2}),
        ("cifar_resnet20", {"drop_path_rate": 0.1, "drop_rate": 0.1}),
        ("mlp", {"drop_rate": 0.1, "depth": 1}),
    ],
)
def test_a_setting_that_counts_is_taken_and_the_weights_are_as_without_the_check(
    name: str, kwargs: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for checked in (True, False):
        if not checked:
            monkeypatch.setattr(classifiers, "check_settings", lambda *_: None)
        torch.manual_seed(3)
        model = build_model(name, kwargs, in_chans=1, num_classes=10, image_size=(32, 32))
        made.append([*model.state_dict().values(), torch.rand(1)])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def test_pretrained_weights_that_cannot_be_fetched_are_one_sentence_with_the_way_to_a_local_file(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def offline(name: str, **settings: Any) -> None:
        tries.append(settings)
        assert constants.HF_HUB_OFFLINE, "its client would try for a minute and more"
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 8s [Retry 5/5].")
        raise OSError("An error happened while trying to locate the file on the Hub")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("neumann.network.why_unreachable", lambda address: f"{address} cannot be reached: no route")
    with pytest.raises(UserError) as caught:
        build_model("resnet18", {"pretrained": True}, in_chans=3, num_classes=10, image_size=(32, 32))
    assert str(caught.value) == (
        "model.name=resnet18: its pretrained weights, timm/resnet18.a1_in1k of the Hugging Face Hub, are not in the "
        f"cache of this machine and cannot be fetched ({constants.ENDPOINT} cannot be reached: no route): get "
        "model.safetensors from there where there is a network, and add "
        "'+model.kwargs.pretrained_cfg_overlay={file:/path/to/model.safetensors}'"
    )
    assert not constants.HF_HUB_OFFLINE
    assert len(tries) == 1, "another size of the images makes no network"
    assert not caplog.records
    given = {"pretrained": True, "pretrained_cfg_overlay": {"file": "/no/such/file"}}
    with pytest.raises(UserError, match="cannot be made with pretrained=true, pretrained_cfg_overlay"):
        build_model("resnet18", given, in_chans=3, num_classes=10, image_size=(32, 32))


def test_an_auxiliary_weight_of_a_model_fitted_to_the_size_is_refused_as_that() -> None:
    with pytest.raises(UserError, match=r"model.auxiliary_weight is set and model.name=mlp has no auxiliary head"):
        build_model("mlp", {}, in_chans=1, num_classes=10, image_size=(8, 8), auxiliary_head=True)
