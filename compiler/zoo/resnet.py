"""ResNets for 32 x 32 images (He et al., CVPR 2016, section 4.2): three stages of 16, 32 and 64 channels.

``shortcut=pad``: without parameters; where the shape changes it is every other position, padded with zero channels,
half of them in front (``behind``: all of them behind). ``shortcut=projection``: a 1 x 1 convolution and a norm there.
``block=bottleneck``: 1 x 1, 3 x 3, 1 x 1 with four times the width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from . import check
from .initial import initialise

EXPANSION: Final = 4
WIDTHS: Final = (16, 32, 64)
Shortcut = Literal["pad", "behind", "projection"]


@dataclass(frozen=True)
class ResNet:
    """Options of the family."""

    name: ClassVar[str] = "resnet"
    kind: ClassVar[str] = "network"

    depth: int = 20
    classes: int = 10
    block: Literal["basic", "bottleneck"] = "basic"
    shortcut: Shortcut = "pad"
    inner: tuple[int, ...] = ()
    """Output channels of the first convolution of every block: one number per stage, or one per block."""

    def __post_init__(self) -> None:
        per = 6 if self.block == "basic" else 9
        good = self.depth > 2 and (self.depth - 2) % per == 0
        check(good, f"there is no such ResNet-{self.depth}", f"depth = {per} n + 2, such as {3 * per + 2}")
        check(self.classes > 0, f"a network cannot have {self.classes} classes", "classes=10")
        blocks = self.blocks
        fits = len(self.inner) in (0, 3, 3 * blocks) and all(width > 0 for width in self.inner)
        check(fits, f"inner has {len(self.inner)} widths", f"3 widths, one per stage, or {3 * blocks}, one per block")

    @property
    def blocks(self) -> int:
        """Per stage."""
        return (self.depth - 2) // (6 if self.block == "basic" else 9)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input."""
        return (1, 3, 32, 32)

    def inner_widths(self) -> Iterator[int]:
        """Yield the output channels of the first convolution of every block."""
        for place in range(3 * self.blocks):
            stage = place // self.blocks
            yield self.inner[stage if len(self.inner) == 3 else place] if self.inner else WIDTHS[stage]

    def build(self) -> nn.Module:
        """Return the network."""
        return CifarResNet(self)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, outputs, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, and a shortcut."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        middle = outputs // EXPANSION
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, middle, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, outputs, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class Padding(nn.Module):
    """A shortcut without parameters: every other position, and zeros for the channels that are more."""

    def __init__(self, front: int, behind: int, stride: int) -> None:
        super().__init__()
        self.front, self.behind, self.stride = front, behind, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, front + C + behind, H / stride, W / stride]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.front, self.behind))


def _shortcut(inputs: int, outputs: int, stride: int, kind: Shortcut) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if kind == "projection":
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    more = outputs - inputs
    front = 0 if kind == "behind" else more // 2
    return Padding(front, more - front, stride)


class CifarResNet(nn.Module):
    """[N, 3, 32, 32] to [N, classes]."""

    def __init__(self, options: ResNet) -> None:
        super().__init__()
        block, expansion = (BasicBlock, 1) if options.block == "basic" else (Bottleneck, EXPANSION)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inner, inputs = options.inner_widths(), 16
        stages: list[nn.Sequential] = []
        for stage, width in enumerate(WIDTHS):
            layers: list[nn.Module] = []
            for place in range(options.blocks):
                stride = 2 if stage and not place else 1
                layers.append(block(inputs, next(inner), width * expansion, stride, options.shortcut))
                inputs = width * expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(inputs, options.classes)
        initialise(self, linear=None)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
