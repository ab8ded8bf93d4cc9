"""MobileNetV1 (Howard et al., arXiv 1704.04861): 3 x 3 depthwise and 1 x 1 convolutions in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from . import check
from .initial import initialise

_LAYERS: Final = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Output channels and stride of every depthwise separable convolution."""


@dataclass(frozen=True)
class MobileNet:
    """Options of the family."""

    name: ClassVar[str] = "mobilenetv1"
    kind: ClassVar[str] = "network"

    classes: int = 10
    width: float = 1.0
    """Multiplies all widths."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """For 32 x 32 images, the first three strides are 1."""

    def __post_init__(self) -> None:
        check(self.classes > 0, f"a network cannot have {self.classes} classes", "classes=10")
        check(self.width > 0, f"the width cannot be {self.width:g}", "width=0.5")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input."""
        return (1, 3, 224, 224) if self.stem == "imagenet" else (1, 3, 32, 32)

    def build(self) -> nn.Module:
        """Return the network."""
        return MobileNetV1(self)


class Separable(nn.Module):
    """A depthwise and a 1 x 1 convolution, each with norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, outputs, H / stride, W / stride]."""
        x = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(x)))


class MobileNetV1(nn.Module):
    """[N, 3, H, W] to [N, classes]."""

    def __init__(self, options: MobileNet) -> None:
        super().__init__()
        spared = 0 if options.stem == "imagenet" else 3
        strides = [2, *(stride for _, stride in _LAYERS)]
        for place in [p for p, stride in enumerate(strides) if stride == 2][:spared]:
            strides[place] = 1
        inputs = max(1, round(32 * options.width))
        self.conv1 = nn.Conv2d(3, inputs, 3, strides[0], 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        layers: list[nn.Module] = []
        for (width, _), stride in zip(_LAYERS, strides[1:], strict=True):
            outputs = max(1, round(width * options.width))
            layers.append(Separable(inputs, outputs, stride))
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, options.classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
