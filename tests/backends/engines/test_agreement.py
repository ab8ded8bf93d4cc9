"""Differences are counted, and never hidden by NaN or by shapes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from secateur.backends.engines.agreement import compare, flatten, measure, random_inputs
from secateur.compiler.capture import trace
from secateur.compiler.errors import CompilerError
from support.small import captured


def test_flatten_keeps_the_order() -> None:
    a, b, c = torch.zeros(1), torch.ones(2), torch.ones(3)
    assert [len(t) for t in flatten({"z": a, "a": [b, (c, None, 3)]})] == [1, 2, 3]


def test_compare_counts_steps() -> None:
    wanted = torch.tensor([1.0, 0.5, -2.0, 0.0])
    given = wanted + torch.tensor([0.0, 0.0001, 0.01, -0.1])
    found = compare([given], [wanted])
    assert found.max_difference == pytest.approx(0.1, rel=1e-4)
    assert found.scale == 2.0
    assert found.share_differing == 0.5
    assert found.relative_error == pytest.approx(math.sqrt(0.0101 / 5.25), rel=1e-3)
    assert set(found.to_json()) == {"max_difference", "scale", "share_differing", "relative_error"}


def test_equal_is_zero_even_for_nan() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf")])
    assert compare([values[:2]], [values[:2]]).max_difference == 0.0
    assert compare([torch.zeros(2)], [torch.zeros(2)]).relative_error == 0.0
    assert compare([torch.ones(2)], [torch.zeros(2)]).relative_error == 1.0


def test_a_nan_where_there_is_none_is_infinitely_far() -> None:
    found = compare([torch.tensor([float("nan"), 1.0])], [torch.ones(2)])
    assert found.max_difference == math.inf
    assert found.share_differing == 0.5


def test_other_shapes_are_an_error() -> None:
    with pytest.raises(CompilerError, match="shapes"):
        compare([torch.ones(1, 2)], [torch.ones(2)])
    with pytest.raises(CompilerError, match="shapes"):
        compare([], [torch.ones(2)])


def test_inputs_are_reproducible_and_of_the_right_kind() -> None:
    class Gather(nn.Module):
        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            return x.gather(1, index)

    program = trace(Gather(), [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)])
    x, index = random_inputs(program, 5)
    assert x.shape == index.shape == (5, 3)
    assert index.dtype == torch.int64
    assert torch.equal(x, random_inputs(program, 5)[0])
    assert not torch.equal(x, random_inputs(program, 5, seed=1)[0])
    assert program.module(x, index).shape == (5, 3)


def test_measure_returns_the_worst_batch() -> None:
    program = captured(nn.ReLU(), 1, 4)
    found = measure(program, lambda x: [x.relu() + (len(x) == 3)], program.module, (1, 3, None))
    assert found.max_difference == pytest.approx(1.0)
    assert found.share_differing == 1.0
