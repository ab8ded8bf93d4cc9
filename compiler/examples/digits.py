"""The embedded example ``digits``: a small residual network on the UCI handwritten digits.

Data: 1,797 images of 8x8 pixels with 17 grey levels, ten classes: the test part of E. Alpaydin and C. Kaynak, *Optical
Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, licensed
CC BY 4.0, as scikit-learn ships it. ``digits.npz`` holds it with a fixed, stratified split; ``digits.safetensors``
holds the weights that ``train_digits.py`` writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

DATA_FILE = Path(__file__).with_name("digits.npz")
WEIGHTS_FILE = Path(__file__).with_name("digits.safetensors")
INPUT_SHAPE = (1, 1, 8, 8)
CLASSES = tuple("0123456789")
LEVELS = 16.0
"""The largest grey level; images are stored as integers from 0 to this."""
MEAN = 0.3052
STD = 0.3760
"""Of the training images, after division by ``LEVELS``."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.downsample(x))


class DigitsNet(nn.Module):
    """A stem, three stages of two residual blocks (16, 32 and 64 channels), global pooling and a linear classifier."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64), classes: int = len(CLASSES)) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(ResidualBlock(first, first, 1), ResidualBlock(first, first, 1))
        self.layer2 = nn.Sequential(ResidualBlock(first, second, 2), ResidualBlock(second, second, 1))
        self.layer3 = nn.Sequential(ResidualBlock(second, third, 2), ResidualBlock(third, third, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 1, 8, 8), normalised, to logits (N, classes). Other sizes work too."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def build() -> nn.Module:
    """Return the network with random weights, drawn from torch's global generator."""
    return DigitsNet()


@dataclass(frozen=True, eq=False)
class DigitsData:
    """The split data set: images float32 (N, 1, 8, 8), normalised; labels int64 (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def read_data() -> DigitsData:
    """Return the embedded images, 1,347 for training and 450 for testing."""
    with np.load(DATA_FILE, allow_pickle=False) as stored:
        pixels, labels, is_test = stored["images"], stored["labels"], stored["is_test"].astype(bool)
    images = (torch.from_numpy(pixels).float().div(LEVELS).unsqueeze(1) - MEAN) / STD
    targets = torch.from_numpy(labels).long()
    test = torch.from_numpy(is_test)
    return DigitsData(images[~test], targets[~test], images[test], targets[test])
