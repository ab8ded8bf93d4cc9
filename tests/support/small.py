"""Small models for tests of what surrounds the passes, and the programs captured from them."""

import torch
from torch import Tensor, nn

from secateur.compiler.capture import trace
from secateur.compiler.program import Program


class Residual(nn.Module):
    """A trunk of coupled layers, one free layer inside, a norm of every kind, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.back = nn.Conv2d(6, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = self.norm(x + self.back(torch.relu(self.inner(x))))
        return self.fc(x.mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two plain ones, in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 1)
        self.b = nn.Conv2d(16, 24, 3, groups=4)
        self.c = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class Pinned(nn.Module):
    """Channels that stay, because an operation without a rule reads their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.b = nn.Conv2d(6, 6, 1)
        self.c = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(torch.cumsum(y + self.b(y), 1))


def captured(model: nn.Module, *shape: int) -> Program:
    """Capture a model in eval mode; images of 3x8x8 by default."""
    return trace(model.eval(), torch.zeros(shape or (1, 3, 8, 8)))
