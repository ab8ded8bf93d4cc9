"""How what is said of a class becomes one number."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from secateur.compiler.dependency import ParamSlice
from secateur.passes.prune.criteria.base import Context, Scores, SliceCriterion
from support.pruning import deps_of, program_of, use_of
from support.scores import context_of, linear

PARTS = [
    (np.array([0, 1]), np.array([2.0, 3.0])),
    (np.array([[0], [1]]), np.array([[8.0], [0.0]])),
    (np.array([1, 1]), np.array([6.0, 3.0])),  # one channel in two places
]


@pytest.fixture
def context() -> Context:
    return context_of(nn.Sequential(linear([1.0], [1.0], [1.0]), linear([1.0, 1.0, 1.0])), torch.ones(1, 1))


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", [5.0, 3.0]), ("sum", [10.0, 12.0]), ("max", [8.0, 6.0]), ("product", [4.0, 0.0])]
)
def test_what_is_said_of_a_class(
    context: Context, how: Literal["mean", "sum", "max", "product"], expected: list[float]
) -> None:
    asked = Context(context.program, context.deps, aggregate=how)
    found = asked.combine(iter(PARTS))
    assert found[:2] == pytest.approx(expected)
    assert np.isnan(found[2:]).all(), "nothing was said of the others"
    assert len(found) == asked.classes


def test_a_product_of_large_numbers_does_not_overflow(context: Context) -> None:
    asked = Context(context.program, context.deps, aggregate="product")
    assert asked.combine([(np.array([0]), np.array([1e300]))] * 4)[0] == pytest.approx(1e300)


class Ones(SliceCriterion):
    """Says 1 of every slice, and counts them."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def of_slice(self, tensor: torch.Tensor, use: ParamSlice, generator: np.random.Generator) -> Scores | None:
        assert tensor.shape[use.axis] in (use.atoms.shape[-1], use.atoms.size)
        self.seen.append(use.name)
        return np.ones(use.atoms.shape)


def test_a_tensor_with_two_names_is_seen_once() -> None:
    deps, criterion = deps_of("tied_weights"), Ones()
    scores = criterion.score(Context(program_of("tied_weights"), deps))
    assert "a.weight" in criterion.seen
    assert "b.weight" not in criterion.seen
    assert (scores[deps.class_of[use_of(deps, "stem.weight").atoms]] == 1.0).all()
