"""The knapsack: against every choice there is, on problems small enough to list them."""

from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.compiler.cost_model import Products
from secateur.passes.prune.knapsack import Ceiling, Choices, solve

Floats = npt.NDArray[np.float64]
ONE = 3


def by_listing(choices: Choices, ceilings: list[Ceiling]) -> float | None:
    """Return the least damage of all choices within the ceilings."""
    found = [
        sum(float(d[i]) for d, i in zip(choices.damage, chosen, strict=True))
        for chosen in product(*(range(len(d)) for d in choices.damage))
        if all(c.cost(choices.counts(chosen)) <= c.at_most * (1 + 1e-9) for c in ceilings)
    ]
    return min(found, default=None)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), options=st.integers(2, 4), fraction=st.floats(0.2, 0.9))
def test_the_choice_is_the_best_there_is(seed: int, options: int, fraction: float) -> None:
    generator = np.random.default_rng(seed)
    # Three blocks and three counts: the first two of a block each, the third of all three (a concatenation).
    tables: list[Floats] = []
    damage: list[Floats] = []
    for block in range(3):
        table = np.zeros((options, ONE + 1))
        table[:, 2] = np.sort(generator.integers(0, 8, options))
        if block < 2:
            table[:, block] = table[:, 2]
        tables.append(table)
        damage.append(np.sort(generator.random(options))[::-1].copy())
    choices = Choices(np.array([1.0, 2.0, 0.0, 1.0]), tables, damage)
    rows = np.array([[0, 1], [0, 2], [2, ONE], [2, 2], [ONE, ONE]])
    macs = Products(rows, generator.random(5), 1.0)
    params = Products(np.array([[1, 2]]), np.array([1.0]))
    widest = choices.counts([options - 1] * 3)
    ceilings = [Ceiling(macs, fraction * macs(widest)), Ceiling(params, 0.8 * params(widest))]
    best, found = by_listing(choices, ceilings), solve(choices, ceilings, gap=1e-9)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.damage == pytest.approx(best, abs=1e-6)
    assert all(c.cost(choices.counts(found.chosen)) <= c.at_most * (1 + 1e-6) for c in ceilings)


def test_a_third_factor_is_taken_at_its_widest() -> None:
    tables = [np.eye(3, 4)[:2] * 2 + 0.0 for _ in range(1)]
    tables = [np.zeros((2, 4)) for _ in range(3)]
    for block, table in enumerate(tables):
        table[1, block] = 2.0
    choices = Choices(np.array([1.0, 1.0, 1.0, 1.0]), tables, [np.array([1.0, 0.0])] * 3)
    cost = Products(np.array([[0, 1, 2]]), np.array([1.0]))
    found = solve(choices, [Ceiling(cost, 9.0)])
    assert found is not None
    assert cost(choices.counts(found.chosen)) <= 9.0


def test_no_choice_within_the_ceiling() -> None:
    choices = Choices(np.array([1.0, 1.0]), [np.array([[1.0, 0.0], [2.0, 0.0]])], [np.array([1.0, 0.0])])
    assert solve(choices, [Ceiling(Products(np.array([[0, 1]]), np.array([1.0])), 1.5)]) is None
