"""Every file of conf/model/ makes the network that it names, with the published number of parameters."""

from __future__ import annotations

import pytest
import timm
import torch

from neumann.config import make_spec
from neumann.models.classifiers import build_model

# Parameters with the published number of classes and channels: of torchvision's inception_v3 and ResNets, of the port of
# TensorFlow's Inception-ResNet-V2, of He et al.'s networks (table 6: 0.27, 0.46 and 0.85 million), and of ResNet-18 after
# one 3×3 convolution, as kuangliu/pytorch-cifar has it.
PUBLISHED = {
    "inception_v3": (27_161_264, 1000, 299),
    "inception_resnet_v2": (55_843_464, 1000, 299),
    "resnet50": (25_557_032, 1000, 224),
    "resnet101": (44_549_160, 1000, 224),
    "resnet20": (269_722, 10, 32),
    "resnet32": (464_154, 10, 32),
    "resnet56": (853_018, 10, 32),
    "cifar_resnet18": (11_173_962, 10, 32),
}


@pytest.mark.parametrize("option", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(option: str) -> None:
    count, classes, size = PUBLISHED[option]
    model = make_spec([f"model={option}"]).config.model
    with torch.device("meta"):
        made = build_model(
            model.name,
            model.kwargs,
            in_chans=3,
            num_classes=classes,
            image_size=(size, size),
            auxiliary_head=model.auxiliary_weight is not None,
        )
    assert sum(parameter.numel() for parameter in made.parameters()) == count


def test_the_perceptron_has_the_size_of_the_images() -> None:
    for size, pixels in (((14, 14), 196), ((8, 12), 96)):
        made = build_model("mlp", {"width": 32}, in_chans=1, num_classes=10, image_size=size)
        assert sum(p.numel() for p in made.parameters()) == 32 * (pixels + 1) + 32 * 33 + 10 * 33


def test_none_of_ours_is_taken_for_one_of_timms() -> None:
    ours = {"small_cnn", "mlp", *(f"cifar_resnet{depth}" for depth in (18, 20, 32, 56))}
    for name in ours:
        assert timm.model_entrypoint(name).__module__.startswith("neumann.models.")


def test_a_shortcut_keeps_every_second_pixel_and_adds_zeros() -> None:
    """With the last convolution of each block at zero, a network is its shortcuts."""
    model = timm.create_model("cifar_resnet20", in_chans=3).double()
    block = model.stages[1][0]
    x = torch.rand(2, 16, 8, 8, dtype=torch.float64)
    torch.nn.init.zeros_(block.conv2.weight)
    expected = torch.zeros(2, 32, 4, 4, dtype=torch.float64)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


def test_drop_path_rises_to_its_rate_at_the_last_block() -> None:
    model = timm.create_model("cifar_resnet20", drop_path_rate=0.4)
    rates = [0.0 if block.drop_path is None else block.drop_path.drop_prob for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.05 * block for block in range(9)])
    assert timm.create_model("cifar_resnet20").stages[0][1].drop_path is None
