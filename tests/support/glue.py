"""Models that are Python around two regions, and what tests ask of regions."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from secateur.compiler.analysis import analyze
from secateur.compiler.regions import Regions, find_regions
from secateur.compiler.verifier import verify

from .pruning import group_of, prune, reasons

X = torch.randn(2, 3, 8, 8)


class Glue(nn.Module):
    """Two regions; Python between them, so that the whole does not trace."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.head(self.between(self.backbone(x))))

    def between(self, features: Tensor) -> Any:
        return features

    def answer(self, scores: Tensor) -> Any:
        return [s for s in scores if float(s.sum()) < 1e9]


def regions_of(model: nn.Module, *inputs: Any, training: Any = None) -> Regions:
    """The regions, whose program is valid and whose pruning is proven."""
    found = find_regions(model.eval(), *(inputs or (X,)), training=training)
    verify(found.program)
    prune(found.program, ratio=0.5)
    return found


def paths(regions: Regions) -> list[str]:
    return [region.path for region in regions.regions]


def border(regions: Regions, source: str) -> str:
    (reason,) = {b.reason for b in regions.borders if b.source == source}
    return reason


def is_free(regions: Regions, layer: str) -> bool:
    """Whether all of a layer's channels may go."""
    group = group_of(analyze(regions.program), layer)
    return group.prunable == group.width


def pinned(regions: Regions, layer: str) -> list[str]:
    deps = analyze(regions.program)
    assert group_of(deps, layer).prunable == 0
    return reasons(deps, layer)


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, 2, 1)
        self.two = nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        one = self.one(x)
        return OrderedDict(one=one, two=self.two(one))
