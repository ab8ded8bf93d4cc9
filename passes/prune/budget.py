"""From a budget to levels: bisection over the ordered steps, and what to say when it cannot be met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ...compiler.errors import BudgetError
from .selection import Bools, Ints, Selection

TOLERANCE: Final = 0.01
"""A budget counts as met within this fraction of the original cost."""


@dataclass(frozen=True)
class Budget:
    """Keep this fraction of a cost."""

    name: str
    fraction: float
    cost: Callable[[Bools], float]


def meet(budget: Budget, selection: Selection, scope: str) -> Ints:
    """Lower blocks in the order of ``scope`` until the cost is as near to the budget as one step allows.

    Raises:
        BudgetError: Even the smallest legal widths cost more.
    """
    original = budget.cost(selection.keep(selection.full))
    target = budget.fraction * original
    steps = selection.steps(scope)

    def cost_after(prefix: int) -> float:
        return budget.cost(selection.keep(steps.levels(prefix)))

    smallest = cost_after(len(steps))
    if smallest > target + TOLERANCE * original:
        raise unreachable(budget.name, budget.fraction, smallest / max(original, 1e-12), selection)
    low, high = 0, len(steps)
    while low < high:  # the first prefix whose cost does not exceed the target
        middle = (low + high) // 2
        low, high = (low, middle) if cost_after(middle) <= target else (middle + 1, high)
    best = min({max(low - 1, 0), low}, key=lambda prefix: abs(cost_after(prefix) - target))
    return steps.levels(best)


def unreachable(name: str, fraction: float, reachable: float, selection: Selection) -> BudgetError:
    """Say that a budget cannot be met, and what can."""
    front = "; fold-constants in front makes numbers of weights that are computed" if selection.computed else ""
    return BudgetError(
        f"{name}={fraction:g} cannot be reached: the smallest legal widths keep {reachable:.3f} of the {name}",
        hint=f"{name}={min(reachable + 0.005, 1.0):.2f} or more; `secateur inspect` shows what is pinned, and why"
        + front,
    )
