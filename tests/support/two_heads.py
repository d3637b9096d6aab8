"""A small network with an auxiliary head, in timm's registry under the name `two_heads`."""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from neumann.models.classifiers import SmallCNN
from neumann.models.timm_arguments import own_settings

WORDS = ("model=timm", "model.name=two_heads", "model.auxiliary_weight=0.4")


class TwoHeads(SmallCNN):
    """`SmallCNN` with a second head behind its first convolution, and a batch norm in between."""

    def __init__(self, in_chans: int = 1, num_classes: int = 10, width: int = 8) -> None:
        super().__init__(in_chans, num_classes, width)
        self.auxiliary = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.auxiliary_head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        early = self.features[:3](x)
        auxiliary = self.auxiliary_head(self.auxiliary(early).mean(dim=(2, 3)))
        return self.head(self.features[3:](early).mean(dim=(2, 3))), auxiliary


@register_model
def two_heads(**kwargs: Any) -> TwoHeads:
    """Return a `TwoHeads` of ``kwargs``."""
    return TwoHeads(**own_settings("two_heads", kwargs))
