"""From budgets to widths by a knapsack: the least damage within every budget, from coarse widths to fine ones.

A block of 512 channels has 512 levels, too many to choose from at once. The first problem offers a few of them, evenly
spread; every further one as many between the neighbours of what was chosen, until nothing is gained any more. Several
small problems are solved sooner than a large one, and to a smaller gap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ...compiler.cost_model import CostModel, Products
from .budget import unreachable
from .knapsack import Ceiling, Choices, solve
from .selection import Ints, Selection

Floats = npt.NDArray[np.float64]
Extend = Callable[[Ints], Floats]
"""From the counts of a cost model to those that a budget needs: the same, and perhaps more of them."""

OPTIONS: Final = 256
"""Widths that one problem offers, over all blocks..."""
PER_BLOCK: Final = (6, 16)
"""... and for each, at least and at most."""
SECONDS: Final = 2.0
"""For a problem; after so long the best choice found by then is taken."""
PATIENCE: Final = 10.0
"""How many times longer the first problem may take if no choice is found in time."""
IN_ALL: Final = 8.0
"""Seconds after which no further problem is begun."""
ENOUGH: Final = 1e-3
"""What a problem has to gain over the one before for another one, relative to the damage."""


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
        seconds: For each problem.

    Raises:
        BudgetError: The smallest legal widths exceed a budget.
    """
    smallest = extend(model.counts(selection.keep(selection.lowest())))
    for limit in limits:
        least = limit.cost(smallest)
        if least > limit.at_most:
            raise unreachable(limit.name, limit.fraction, limit.fraction * least / limit.at_most, selection)
    ceilings = [Ceiling(limit.cost, limit.at_most) for limit in limits]
    offers = _Offers(selection, model, damage, extend)

    def solved(offered: Sequence[Ints], seconds: float) -> Allocation | None:
        choices = offers.choices(offered)
        solution = solve(choices, ceilings, seconds=seconds, gap=ENOUGH)
        if solution is None:
            return None
        levels = [levels[option] for levels, option in zip(offered, solution.chosen, strict=True)]
        return Allocation(np.array(levels, dtype=np.int64), solution.damage, solution.gap)

    begin = time.monotonic()
    legal = [_multiples(selection, index, multiple) for index in range(len(selection.allowed))]
    least, most = PER_BLOCK
    count = max(least, min(most, OPTIONS // max(1, sum(len(allowed) > 1 for allowed in selection.allowed))))
    offered = [_spread(levels, count) for levels in legal]
    best = solved(offered, seconds) or solved(offered, PATIENCE * seconds)
    if best is None:  # the smallest widths are within the budgets, if little else
        best = Allocation(selection.lowest(), np.inf, 1.0)
    problems = 1
    while time.monotonic() - begin < IN_ALL:
        finer = [_around(*widths, count) for widths in zip(legal, offered, best.levels, strict=True)]
        found = solved(finer, seconds) if not all(map(np.array_equal, finer, offered)) else None
        offered, problems = finer, problems + 1
        gained = found is not None and found.damage < (1 - ENOUGH) * best.damage
        if found is not None and found.damage <= best.damage:
            best = found
        if gained or (found is not None and problems == 2):
            continue
        if all(map(np.array_equal, legal, selection.allowed)):
            break
        legal, problems = selection.allowed, 1  # what lies between the multiples
    return best


def _multiples(selection: Selection, index: int, multiple: int) -> Ints:
    """Return the legal levels of a block whose widths are multiples, the smallest and the full one besides."""
    allowed = selection.allowed[index]
    keep = selection.blocks[index].widths(allowed) % multiple == 0
    keep[[0, -1]] = True
    return allowed[keep]


def _spread(allowed: Ints, count: int) -> Ints:
    """Return some of the legal levels, the smallest and the largest among them."""
    count = min(count, len(allowed))
    return allowed[np.unique(np.linspace(0, len(allowed) - 1, count).round().astype(np.int64))]


def _around(allowed: Ints, offered: Ints, chosen: int, count: int) -> Ints:
    """Return some of the legal levels between the neighbours of the one chosen from ``offered``."""
    place = int(np.searchsorted(offered, chosen))
    low, high = offered[max(place - 1, 0)], offered[min(place + 1, len(offered) - 1)]
    near = _spread(allowed[(allowed >= low) & (allowed <= high)], count)
    return np.unique(np.append(near, chosen))


class _Offers:
    """What every width does to the counts: worked out when it is first offered."""

    def __init__(self, selection: Selection, model: CostModel, damage: Sequence[Floats], extend: Extend) -> None:
        self._selection, self._model, self._damage, self._extend = selection, model, damage, extend
        self._full = self._counts(selection.full)
        self._known: dict[tuple[int, int], Floats] = {}

    def choices(self, offered: Sequence[Ints]) -> Choices:
        """Return the problem of choosing among some levels of each block."""
        tables = [
            np.stack([self._change(index, int(level)) for level in levels])
            if len(levels) > 1
            else np.zeros((len(levels), len(self._full)))
            for index, levels in enumerate(offered)
        ]
        return Choices(self._full, tables, [d[levels] for d, levels in zip(self._damage, offered, strict=True)])

    def _change(self, index: int, level: int) -> Floats:
        if (index, level) not in self._known:
            changed = self._selection.full.copy()
            changed[index] = level
            self._known[index, level] = self._counts(changed) - self._full
        return self._known[index, level]

    def _counts(self, levels: Ints) -> Floats:
        return self._extend(self._model.counts(self._selection.keep(levels)))
