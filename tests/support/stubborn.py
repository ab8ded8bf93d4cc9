"""Models with regions whose own code does not go along with pruned layers."""

import torch
from torch import Tensor, nn


class Heads(nn.Module):
    """Two regions with Python between them."""

    def __init__(self, head: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.head = head

    def forward(self, x: Tensor) -> list[Tensor]:
        scores = self.head(self.backbone(x))
        return [scores[i] for i in range(len(scores)) if float(scores[i].detach().sum()) < 1e9]


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 6, 1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).view(-1, 6, 14, 14))


class Halving(nn.Module):
    """Its halves are what is left of them only where the same is left of both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.one = nn.Conv2d(4, 2, 1)
        self.other = nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            self.conv.weight[:2] *= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.conv(x).chunk(2, 1)
        return self.one(one) + self.other(other)


class Shuffling(nn.Module):
    """Interleaves the halves of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 2, 1)
        with torch.no_grad():
            self.conv.weight[:2] *= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, c, h, w = x.shape
        return self.last(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class Branches(nn.Module):
    """Two layers that read one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(8, 4, 3, padding=1)
        self.two = nn.Conv2d(8, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.one(x) * self.two(x))


X = torch.zeros(1, 3, 16, 16)
SELECT = "prune{macs=0.6 scope=global criterion=random select=all}"

STUBBORN = {
    "literal": (Counting, "prune{ratio=0.5}", "head", "RuntimeError: Given groups=1"),
    "split": (Halving, "prune{layers=head.conv:0.25}", "head", "RuntimeError: Given groups=1"),
    "shuffled": (Shuffling, "prune{layers=head.conv:0.25}", "head", "its result is off by"),
    "selected": (Branches, SELECT, "head", "RuntimeError: Given groups=1"),
    "folded": (lambda: nn.Conv2d(8, 2, 1), "prune{ratio=0.5},fold-bn", "backbone", "RuntimeError: running_mean"),
    "gone": (lambda: nn.Conv2d(8, 2, 1), "fold-bn", "backbone", "its result is off by"),
}
