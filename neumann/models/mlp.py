"""A multilayer perceptron for small images."""

from __future__ import annotations

from typing import Any

from timm.layers import to_2tuple
from timm.models import register_model
from torch import Tensor, nn

from neumann.models.timm_arguments import own_settings


class Mlp(nn.Module):
    """Hidden layers of one width with ReLU between the image's pixels and the logits, without batch norm.

    Args:
        in_chans: channels of the images.
        num_classes: number of logits.
        img_size: pixels of an image's side, or (height, width).
        width: units of each hidden layer.
        depth: number of hidden layers.
        drop_rate: share of each hidden layer's units that dropout sets to zero in training.
    """

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 10,
        img_size: int | tuple[int, int] = 28,
        width: int = 256,
        depth: int = 2,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if width < 1 or depth < 1:
            raise ValueError(f"width={width} and depth={depth} must be at least 1")
        self.num_classes = num_classes
        height, across = to_2tuple(img_size)
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = in_chans * height * across
        for _ in range(depth):
            layers += [nn.Linear(inputs, width), nn.ReLU(inplace=True), nn.Dropout(drop_rate)]
            inputs = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, num_classes] of images [B, in_chans, H, W]."""
        logits: Tensor = self.head(self.features(x))
        return logits


@register_model
def mlp(**kwargs: Any) -> Mlp:
    """Return an `Mlp` of ``kwargs``; timm's factory makes it by this name."""
    return Mlp(**own_settings("mlp", kwargs))
