"""From a budget to levels: bisection over the ordered steps, and what to say when it cannot be met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...compiler.errors import BudgetError
from .selection import Ints, Selection

TOLERANCE = 0.01
"""A budget counts as met within this fraction of the original cost."""


@dataclass(frozen=True)
class Budget:
    """Keep this fraction of a cost."""

    name: str
    fraction: float
    cost: Callable[[npt.NDArray[np.bool_]], int]


@dataclass(frozen=True)
class Met:
    """Levels, and the fraction of the original cost that they keep."""

    levels: Ints
    fraction: float


def meet(budget: Budget, selection: Selection, scope: str) -> Met:
    """Lower blocks in the order of ``scope`` until the cost is as near to the budget as one step allows.

    Raises:
        BudgetError: Even the smallest legal widths cost more.
    """
    original = budget.cost(selection.keep(selection.full))
    target = budget.fraction * original
    steps = selection.steps(scope)

    def cost_after(prefix: int) -> int:
        return budget.cost(selection.keep(steps.levels(prefix)))

    smallest = cost_after(len(steps))
    if smallest > target + TOLERANCE * original:
        raise BudgetError(
            f"{budget.name}={budget.fraction:g} cannot be reached: "
            f"the smallest legal widths keep {smallest / max(original, 1):.3f} of the {budget.name}",
            hint=f"{budget.name}={min(smallest / max(original, 1) + 0.005, 1.0):.2f} or more; "
            "`secateur inspect` shows what is pinned, and why",
        )
    low, high = 0, len(steps)
    while low < high:  # the first prefix whose cost does not exceed the target
        middle = (low + high) // 2
        low, high = (low, middle) if cost_after(middle) <= target else (middle + 1, high)
    best = min({max(low - 1, 0), low}, key=lambda prefix: abs(cost_after(prefix) - target))
    levels = steps.levels(best)
    return Met(levels, budget.cost(selection.keep(levels)) / max(original, 1))
