"""Which channels may change places: units, and tensors that follow a new order."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.dependency import ChannelDependencies
from secateur.compiler.plan import Plan
from secateur.compiler.program import Program
from secateur.compiler.proof import prove
from secateur.passes.slicing.order import Order, natural_order
from secateur.passes.slicing.plan import plan_of
from secateur.passes.slicing.rewrite import rewrite
from secateur.passes.slicing.tensors import KeptChannels, slice_tensors
from support.pruning import program_of
from support.zoo import ZOO


def reordered(program: Program, deps: ChannelDependencies, seed: int = 0) -> tuple[Program, Plan, Order]:
    """Permute every unit at random."""
    order = natural_order(deps)
    rank = np.random.default_rng(seed).permutation(len(order.rank))
    order = Order(order.unit, order.place, rank.astype(np.int64))
    kept = KeptChannels(deps, np.ones(len(rank), dtype=np.bool_), order)
    tensors, indices = slice_tensors(program, kept)
    return rewrite(program, tensors, kept), plan_of(kept, indices), order


@pytest.mark.parametrize("name", sorted(ZOO))
def test_any_order_of_any_unit_computes_the_same(name: str) -> None:
    program = program_of(name)
    deps = analyze(program)
    result, plan, _ = reordered(program, deps)
    assert prove(program, result.module, plan).holds


class Pieces(nn.Module):
    """a is split into halves, b is read whole, c is joined with b, d's channels are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 8, 1) for _ in range(4))
        self.head = nn.Conv2d(28, 5, 1)
        self.flat = nn.Linear(8 * 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.a(x).chunk(2, 1)
        b = self.b(x)
        d = F.channel_shuffle(self.d(x), 2)
        return self.head(torch.cat([first * second, b, self.c(x), d], 1)), self.flat(b.flatten(1))


def unit_sizes(order: Order, classes: np.ndarray) -> list[int]:
    return [int((order.unit == unit).sum()) if unit >= 0 else 0 for unit in np.unique(order.unit[classes])]


def test_a_unit_is_what_all_tensors_hold_whole_and_in_one_order() -> None:
    torch.manual_seed(0)
    program = trace(Pieces(), torch.zeros(1, 3, 2, 2))
    deps = analyze(program)
    order = natural_order(deps)
    classes = {g.layers[0]: g.classes for g in deps.groups if g.layers}
    assert unit_sizes(order, classes["b"]) == [8]  # also flattened, every channel in one piece
    assert unit_sizes(order, classes["c"]) == [8]
    assert unit_sizes(order, classes["a"]) == [4]  # halves, multiplied: permuted alike
    assert set(order.unit[classes["d"]]) == {-1}  # known by their positions
    assert set(order.unit[classes["head"]]) == {-1}  # the model's output
    result, plan, _ = reordered(program, deps, seed=3)
    assert prove(program, result.module, plan).holds
    assert sorted(plan.kept["b.weight"][0]) == list(range(8)) != plan.kept["b.weight"][0]
