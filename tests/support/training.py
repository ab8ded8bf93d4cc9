"""Small things to train: images in memory, networks, and a loop that calls hooks in the documented order."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.backends.training.callback import Callback, Run
from secateur.backends.training.data import Data
from secateur.backends.training.splits import InMemory, Share
from secateur.compiler.capture import trace
from secateur.compiler.data.preprocess import Preprocess

GREY = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def split(count: int = 48, classes: int = 3, size: int = 8, seed: int = 0) -> InMemory:
    """Bright noise of a different mean colour for every class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randint(0, 80, (count, 3, size, size), generator=generator)
    for label in range(classes):
        images[labels == label, label % 3] += 120
    return InMemory("noise", tuple(map(str, range(classes))), GREY, images.to(torch.uint8), labels)


def data(count: int = 48, classes: int = 3, size: int = 8) -> Data:
    return Data(split(count, classes, size), split(24, classes, size, seed=1), {"data": "noise"})


class Residual(nn.Module):
    """Norms, a shortcut padded with zeros, dropout."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 10, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(10)
        self.conv3 = nn.Conv2d(10, 2 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(2 * width, classes)
        self.pad = width

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(x)))
        y = self.bn3(self.conv3(y)) + F.pad(x, (0, 0, 0, 0, 0, self.pad))
        return self.fc(self.dropout(F.relu(y).mean((2, 3))))


def network(seed: int = 0, width: int = 8) -> Residual:
    torch.manual_seed(seed)
    return Residual(width)


def run_of(module: nn.Module, *, epochs: int = 2, optimizer: torch.optim.Optimizer | None = None) -> Run:
    """A run of six steps per epoch."""
    made = optimizer or torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    return Run(module, trace(module, torch.zeros(1, 3, 8, 8)), made, epochs, 6)


def epoch_of(run: Run, callbacks: Sequence[Callback], images: InMemory | None = None) -> None:
    """Train for an epoch."""
    found = images or split()
    run.module.train()
    for callback in callbacks:
        callback.before_epoch(run)
    for x, labels in found.training(run.epoch, 8, share=share(), seed=0, augment="none"):
        loss = F.cross_entropy(run.module(x), labels)
        run.optimizer.zero_grad()
        loss.backward()
        for callback in callbacks:
            callback.before_step(run)
        run.optimizer.step()
        run.step += 1
        for callback in callbacks:
            callback.after_step(run)
    run.figures = {}
    for callback in callbacks:
        callback.after_epoch(run)
    run.epoch += 1


def share() -> Share:

    return Share()
