"""Tests of timm's classifiers: fitted to the data, or refused in one sentence."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import timm
import torch

from neumann.errors import UserError
from neumann.models.classifiers import build_model


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
        ("resnet18", {"pretrained_cfg_overlay": {"file": "a"}}, "none are loaded without +model.kwargs.pretrained=true"),
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


def test_pretrained_weights_that_cannot_be_fetched_are_one_sentence_with_the_way_to_a_local_file(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def offline(name: str, **settings: Any) -> None:
        tries.append(settings)
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 8s [Retry 5/5].")
        raise OSError("An error happened while trying to locate the file on the Hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError) as caught:
        build_model("resnet18", {"pretrained": True}, in_chans=3, num_classes=10, image_size=(32, 32))
    assert str(caught.value) == (
        "model.name=resnet18: its pretrained weights, timm/resnet18.a1_in1k of the Hugging Face Hub, are not in the "
        "cache of this machine and cannot be fetched: get model.safetensors from there where there is a network, and "
        "add '+model.kwargs.pretrained_cfg_overlay={file:/path/to/model.safetensors}'"
    )
    assert len(tries) == 1, "another size of the images makes no network"
    assert not caplog.records
    given = {"pretrained": True, "pretrained_cfg_overlay": {"file": "/no/such/file"}}
    with pytest.raises(UserError, match="cannot be made with pretrained=true, pretrained_cfg_overlay"):
        build_model("resnet18", given, in_chans=3, num_classes=10, image_size=(32, 32))
