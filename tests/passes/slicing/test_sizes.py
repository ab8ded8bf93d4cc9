"""Sizes that follow the batch and the heads at once."""

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from secateur.compiler.capture import trace
from secateur.compiler.shapes import value_of
from secateur.passes.slicing.sizes import rescaled


class Sizes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        batch, width = x.shape[0], x.size(1)
        y = x.reshape(batch * 4, 3, -1)
        y = y.reshape(2 * y.size(0), -1)
        y = y.reshape(y.shape[0] // 8, 4, -1)
        return y.reshape(batch, width * 2, -1)


def numbers() -> tuple[list[Any], fx.Node]:
    """The products and quotients of a graph, in order, and its output."""
    graph = trace(Sizes(), torch.zeros(2, 12, 4)).graph
    return [n for n in graph.nodes if n.target in (operator.mul, operator.floordiv)], next(reversed(graph.nodes))


@pytest.mark.parametrize(
    ("index", "wanted", "factor"), [(0, 4, 2), (0, 2, 1), (0, 16, 8), (1, 8, 1), (2, 4, 4), (2, 1, 16)]
)
def test_a_factor_or_divisor_takes_another_value(index: int, wanted: int, factor: int) -> None:
    found, end = numbers()
    new = rescaled(found[index], wanted, end)
    assert new is not None
    assert new.target is found[index].target
    assert new.args[1] == factor
    assert value_of(new) == wanted


@pytest.mark.parametrize(("index", "wanted"), [(0, 3), (0, 0), (1, 6), (2, 3), (3, 12)])
def test_there_may_be_none(index: int, wanted: int) -> None:
    """A value that no whole factor gives, and the last product, which follows the width and not the batch."""
    found, end = numbers()
    before = len(end.graph.nodes)
    assert rescaled(found[index], wanted, end) is None
    assert len(end.graph.nodes) == before


def test_a_literal_stays_one() -> None:
    assert rescaled(8, 4, numbers()[1]) is None
