"""DenseNets for 32 x 32 images (Huang et al., CVPR 2017): three dense blocks without bottlenecks, no compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import check
from .initial import initialise


@dataclass(frozen=True)
class DenseNet:
    """Options of the family."""

    name: ClassVar[str] = "densenet"
    kind: ClassVar[str] = "network"

    depth: int = 40
    classes: int = 10
    growth: int = 12
    stem: int = 16
    """Output channels of the first convolution."""
    dropout: float = 0.0
    """Behind every convolution of a dense block."""
    scale: float = 0.5
    """Initial scale of batch norms."""

    def __post_init__(self) -> None:
        good = self.depth > 4 and (self.depth - 4) % 3 == 0
        check(good, f"there is no DenseNet-{self.depth}", "depth = 3 n + 4, such as 22 or 40")
        check(min(self.classes, self.growth, self.stem) > 0, "a width is less than 1", "classes=10 growth=12 stem=16")
        check(0 <= self.dropout < 1, f"dropout cannot be {self.dropout:g}", "0 <= dropout < 1")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input."""
        return (1, 3, 32, 32)

    def build(self) -> nn.Module:
        """Return the network."""
        return CifarDenseNet(self)


class DenseLayer(nn.Module):
    """Norm, ReLU, 3 x 3 convolution; its output stands behind its input."""

    def __init__(self, inputs: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, inputs + growth, H, W]."""
        return torch.cat((x, self.dropout(self.conv1(F.relu(self.bn1(x))))), 1)


class Transition(nn.Module):
    """Norm, ReLU, 1 x 1 convolution, average pool."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, C, H / 2, W / 2]."""
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class CifarDenseNet(nn.Module):
    """[N, 3, 32, 32] to [N, classes]."""

    def __init__(self, options: DenseNet) -> None:
        super().__init__()
        width = options.stem
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        blocks: list[nn.Sequential] = []
        transitions: list[Transition] = []
        for _ in range(3):
            layers: list[nn.Module] = []
            for _place in range((options.depth - 4) // 3):
                layers.append(DenseLayer(width, options.growth, options.dropout))
                width += options.growth
            blocks.append(nn.Sequential(*layers))
            if len(transitions) < 2:
                transitions.append(Transition(width))
        self.dense1, self.transition1 = blocks[0], transitions[0]
        self.dense2, self.transition2 = blocks[1], transitions[1]
        self.dense3 = blocks[2]
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, options.classes)
        initialise(self, scale=options.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.transition1(self.dense1(self.conv1(x)))
        x = self.dense3(self.transition2(self.dense2(x)))
        return self.fc(F.avg_pool2d(F.relu(self.bn(x)), 8).flatten(1))
