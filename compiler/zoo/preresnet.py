"""Pre-activation ResNets for 32 x 32 images (He et al., Identity Mappings in Deep Residual Networks, ECCV 2016).

As network slimming has them: a stem without norm, bottlenecks of norm, ReLU, convolution, and shortcuts that project
the raw input of a block, without a norm. What each block selects of the trunk is the compiler's business: there are no
selection layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from . import check
from .initial import initialise
from .resnet import EXPANSION, WIDTHS


@dataclass(frozen=True)
class PreResNet:
    """Options of the family."""

    name: ClassVar[str] = "preresnet"
    kind: ClassVar[str] = "network"

    depth: int = 164
    classes: int = 10
    scale: float = 0.5
    """Initial scale of batch norms."""

    def __post_init__(self) -> None:
        good = self.depth > 2 and (self.depth - 2) % 9 == 0
        check(good, f"there is no pre-activation ResNet-{self.depth}", "depth = 9 n + 2, such as 29 or 164")
        check(self.classes > 0, f"a network cannot have {self.classes} classes", "classes=10")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input."""
        return (1, 3, 32, 32)

    def build(self) -> nn.Module:
        """Return the network."""
        return CifarPreResNet(self)


class PreBottleneck(nn.Module):
    """Norm, ReLU and convolution, three times, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        whole = stride == 1 and inputs == outputs
        self.downsample = nn.Identity() if whole else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, 4 width, H / stride, W / stride]."""
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return self.conv3(F.relu(self.bn3(y))) + self.downsample(x)


class CifarPreResNet(nn.Module):
    """[N, 3, 32, 32] to [N, classes]."""

    def __init__(self, options: PreResNet) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        inputs = 16
        stages: list[nn.Sequential] = []
        for stage, width in enumerate(WIDTHS):
            layers: list[nn.Module] = []
            for place in range((options.depth - 2) // 9):
                layers.append(PreBottleneck(inputs, width, 2 if stage and not place else 1))
                inputs = EXPANSION * width
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, options.classes)
        initialise(self, scale=options.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.relu(self.bn(x))
        return self.fc(F.avg_pool2d(x, 8).flatten(1))
