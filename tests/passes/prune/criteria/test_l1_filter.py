"""l1-independent and l1-greedy: filters alone, and filters on what is left of their inputs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.capture import trace
from secateur.passes.prune.criteria.base import Bools, Scores
from secateur.passes.prune.prune import Prune
from support.pruning import kept_of, prune, use_of
from support.scores import context_of, linear, scores_at


def rankings_differ() -> nn.Module:
    """Filters of the second layer: (100, 1) and (1, 5). Without input 0 the first is the weaker one."""
    return nn.Sequential(linear([1.0], [-10.0]), linear([100.0, 1.0], [-1.0, 5.0]), linear([1.0, 1.0]))


def test_columns_do_not_count() -> None:
    context = context_of(rankings_differ(), torch.zeros(1, 1))
    assert scores_at(context, "l1-independent", "0") == [1.0, 10.0]
    assert scores_at(context, "l1-independent", "1") == [101.0, 6.0]
    assert scores_at(context, "l1-greedy", "1") == [101.0, 6.0], "nobody chooses, so all inputs are there"


def test_the_inputs_that_are_left() -> None:
    def half(scores: Scores) -> Bools:
        keep = np.ones(len(scores), dtype=np.bool_)
        for layer in "01":
            classes = context.deps.class_of[use_of(context.deps, f"{layer}.weight").atoms]
            keep[classes[scores[classes].argmin()]] = False
        return keep

    context = context_of(rankings_differ(), torch.zeros(1, 1), choice=half)
    assert scores_at(context, "l1-greedy", "0") == [1.0, 10.0]
    assert scores_at(context, "l1-greedy", "1") == [1.0, 5.0]


@pytest.mark.parametrize(("name", "kept"), [("l1-independent", [0]), ("l1-greedy", [1])])
def test_what_is_pruned(name: str, kept: list[int]) -> None:
    result, _ = prune(trace(rankings_differ(), torch.zeros(1, 1)), ratio=0.5, criterion=name)
    assert kept_of(result, "0.weight") == [1]
    assert kept_of(result, "1.weight") == kept


def test_a_note_is_made_once() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten())
    result = Prune(macs=0.5, criterion="l1-greedy").run(trace(module, torch.zeros(1, 3, 8, 8)))
    assert len({(r.node, r.reason) for r in result.remarks}) == len(result.remarks)


class Residual(nn.Module):
    """A trunk made by two layers, and a grouped convolution that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.back = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
        self.up, self.mid = nn.ConvTranspose2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2)
        self.head = nn.Conv2d(4, 1, 1)
        with torch.no_grad():
            for name, value in (("stem", 1.0), ("back", 2.0), ("up", 3.0), ("mid", 4.0), ("head", 1.0)):
                self.get_parameter(f"{name}.weight").fill_(value)
            self.mid.weight[2:, 0] = 5.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.back(x)
        return self.head(self.mid(self.up(x)))


def test_transposed_grouped_and_coupled_filters_on_what_is_left() -> None:
    def choice(scores: Scores) -> Bools:
        keep = np.ones(len(scores), dtype=np.bool_)
        keep[context.deps.class_of[use_of(context.deps, "stem.weight").atoms[:3]]] = False
        keep[context.deps.class_of[use_of(context.deps, "up.weight", 1).atoms[[0, 1, 3]]]] = False
        return keep

    context = context_of(Residual(), torch.zeros(1, 1, 2, 2), choice=choice)
    assert scores_at(context, "l1-greedy", "stem") == [4.5] * 4, "1 and 4 2, averaged: nothing has gone before"
    assert scores_at(context, "l1-greedy", "up", 1) == [3.0] * 4, "one of four inputs is left"
    assert scores_at(context, "l1-greedy", "mid") == [0.0, 0.0, 5.0, 5.0], "each group reads its own inputs"


def test_a_dead_filter_is_the_least_important() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    with torch.no_grad():
        module.get_parameter("0.weight")[2] = 0.0
    context = context_of(module, torch.zeros(1, 3, 8, 8))
    for name in ("l1-independent", "l1-greedy"):
        assert scores_at(context, name, "0")[2] == 0.0
