"""From budgets to widths by a knapsack: the least damage within every budget, from coarse widths to fine ones.

A block of 512 channels has 512 levels, too many to choose from at once. The first problem offers a few of them, evenly
spread; the second offers those around what the first one chose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ...compiler.cost_model import CostModel, Products
from .budget import unreachable
from .knapsack import SECONDS, Ceiling, Choices, solve
from .selection import Ints, Selection

Floats = npt.NDArray[np.float64]
Extend = Callable[[Ints], Floats]
"""From the counts of a cost model to those that a budget needs: the same, and perhaps more of them."""

OPTIONS: Final = 12
"""Widths per block that one problem offers."""


def _same(counts: Ints) -> Floats:
    return counts.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Limit:
    """A budget: at most this much of a cost."""

    name: str
    fraction: float
    """What was asked for, relative to the whole program."""
    cost: Products
    at_most: float


@dataclass(frozen=True, eq=False)
class Allocation:
    """What the knapsack chose."""

    levels: Ints
    damage: float
    gap: float
    """Relative distance of the damage from the least possible among the widths offered, at most."""


def allocate(
    selection: Selection,
    model: CostModel,
    damage: Sequence[Floats],
    limits: Sequence[Limit],
    *,
    extend: Extend = _same,
    multiple: int = 1,
    seconds: float = SECONDS,
) -> Allocation:
    """Choose widths.

    Args:
        selection: Blocks and their legal levels.
        model: Counts.
        damage: Per block, at each level.
        limits: Budgets, all of which must hold.
        extend: Adds counts that the limits' costs refer to.
        multiple: Offer multiples of this at first, as far as there are some.
        seconds: For each of the two problems.

    Raises:
        BudgetError: The smallest legal widths exceed a budget.
    """
    smallest = extend(model.counts(selection.keep(selection.lowest())))
    for limit in limits:
        least = limit.cost(smallest)
        if least > limit.at_most:
            raise unreachable(limit.name, limit.fraction, limit.fraction * least / limit.at_most)
    ceilings = [Ceiling(limit.cost, limit.at_most) for limit in limits]

    def solved(offered: Sequence[Ints]) -> Allocation | None:
        choices = _choices(selection, model, damage, offered, extend)
        solution = solve(choices, ceilings, seconds=seconds)
        if solution is None:
            return None
        levels = [levels[option] for levels, option in zip(offered, solution.chosen, strict=True)]
        return Allocation(np.array(levels, dtype=np.int64), solution.damage, solution.gap)

    legal = [_multiples(selection, index, multiple) for index in range(len(selection.allowed))]
    coarse = [_spread(allowed) for allowed in legal]
    first = solved(coarse)
    if first is None:  # none found in time; the smallest widths are within the budgets, if little else
        first = Allocation(selection.lowest(), np.inf, 1.0)
    fine = [_around(*widths) for widths in zip(selection.allowed, coarse, first.levels, strict=True)]
    if all(len(a) == len(b) for a, b in zip(coarse, selection.allowed, strict=True)):
        return first
    second = solved(fine)
    return second if second is not None and second.damage <= first.damage else first


def _multiples(selection: Selection, index: int, multiple: int) -> Ints:
    """Return the legal levels of a block whose widths are multiples, the smallest and the full one besides."""
    allowed = selection.allowed[index]
    keep = selection.blocks[index].widths(allowed) % multiple == 0
    keep[[0, -1]] = True
    return allowed[keep]


def _spread(allowed: Ints) -> Ints:
    """Return some of the legal levels, the smallest and the largest among them."""
    count = min(OPTIONS, len(allowed))
    return allowed[np.unique(np.linspace(0, len(allowed) - 1, count).round().astype(np.int64))]


def _around(allowed: Ints, offered: Ints, chosen: int) -> Ints:
    """Return some of the legal levels between the neighbours of the one chosen from ``offered``."""
    place = int(np.searchsorted(offered, chosen))
    low, high = offered[max(place - 1, 0)], offered[min(place + 1, len(offered) - 1)]
    near = _spread(allowed[(allowed >= low) & (allowed <= high)])
    return np.unique(np.append(near, chosen))


def _choices(
    selection: Selection, model: CostModel, damage: Sequence[Floats], offered: Sequence[Ints], extend: Extend
) -> Choices:
    full = extend(model.counts(selection.keep(selection.full)))
    tables: list[Floats] = []
    for index, levels in enumerate(offered):
        table = np.zeros((len(levels), len(full)))
        if len(levels) > 1:
            for row, level in enumerate(levels):
                changed = selection.full.copy()
                changed[index] = level
                table[row] = extend(model.counts(selection.keep(changed))) - full
        tables.append(table)
    return Choices(full, tables, [d[levels] for d, levels in zip(damage, offered, strict=True)])
