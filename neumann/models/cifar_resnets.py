"""ResNets for images of 32×32 pixels, beside timm's, which are made for 224×224 and lose such images in their stem.

`cifar_resnet20`, `cifar_resnet32` and `cifar_resnet56` are those of He et al. 2016 (section 4.2): three stages of 16,
32 and 64 channels, shortcuts without parameters. `cifar_resnet18` has the four stages of ResNet-18 (64 to 512 channels)
after a stem of one 3×3 convolution, as most later work on CIFAR does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import DropPath
from timm.models import register_model
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional

from neumann.models.timm_arguments import own_settings


class PaddedShortcut(nn.Module):
    """A shortcut without parameters: every second pixel, with channels of zeros added (He et al. 2016, option A)."""

    def __init__(self, stride: int, more_channels: int) -> None:
        super().__init__()
        self.stride, self.more_channels = stride, more_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C + more_channels, H/stride, W/stride] of ``x`` [B, C, H, W]; half of the zeros come before."""
        before = self.more_channels // 2
        kept = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(kept, (0, 0, 0, 0, before, self.more_channels - before))


class CifarResNet(nn.Module):
    """A residual network without a pooling stem, of timm's basic blocks.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage; the first is the stem's too.
        projection: shortcuts between stages are 1×1 convolutions with batch norm; otherwise they have no parameters.
        in_chans: channels of the images.
        num_classes: number of logits.
        drop_rate: share of the pooled features that dropout sets to zero in training.
        drop_path_rate: share of images for which the last block is left out in training; it rises linearly from 0 at
            the first block (stochastic depth, Huang et al. 2016).
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        projection: bool,
        in_chans: int = 3,
        num_classes: int = 10,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU(inplace=True)
        rates = iter(drop_path_rate * block / max(1, sum(depths) - 1) for block in range(sum(depths)))
        stages, inputs = [], widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for block in range(depth):
                stride = 2 if stage and not block else 1
                shortcut = _shortcut(inputs, width, stride, projection) if stride > 1 or inputs != width else None
                rate = next(rates)
                drop_path = DropPath(rate) if rate else None
                blocks.append(BasicBlock(inputs, width, stride, shortcut, drop_path=drop_path))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(inputs, num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, num_classes] of images [B, in_chans, H, W]."""
        pooled: Tensor = self.stages(self.act1(self.bn1(self.conv1(x)))).mean(dim=(2, 3))
        logits: Tensor = self.fc(self.drop(pooled))
        return logits


def _shortcut(inputs: int, outputs: int, stride: int, projection: bool) -> nn.Module:
    if not projection:
        return PaddedShortcut(stride, outputs - inputs)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _three_stages(name: str, blocks: int, settings: Mapping[str, Any]) -> CifarResNet:
    return CifarResNet([blocks] * 3, [16, 32, 64], projection=False, **own_settings(name, settings))


@register_model
def cifar_resnet20(**kwargs: Any) -> CifarResNet:
    """Return He et al.'s ResNet-20 for CIFAR."""
    return _three_stages("cifar_resnet20", 3, kwargs)


@register_model
def cifar_resnet32(**kwargs: Any) -> CifarResNet:
    """Return He et al.'s ResNet-32 for CIFAR."""
    return _three_stages("cifar_resnet32", 5, kwargs)


@register_model
def cifar_resnet56(**kwargs: Any) -> CifarResNet:
    """Return He et al.'s ResNet-56 for CIFAR."""
    return _three_stages("cifar_resnet56", 9, kwargs)


@register_model
def cifar_resnet18(**kwargs: Any) -> CifarResNet:
    """Return ResNet-18 with a stem for images of 32×32 pixels."""
    own = own_settings("cifar_resnet18", kwargs)
    return CifarResNet([2, 2, 2, 2], [64, 128, 256, 512], projection=True, **own)
