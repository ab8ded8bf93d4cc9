"""Choosing all widths at once: the least damage within budgets, as a mixed-integer linear program.

Every block (of channels that are chosen together) picks one of its options, widths that are legal for it:

    z[b, i] in {0, 1},   sum_i z[b, i] = 1,   minimise sum damage[b, i] z[b, i]

Costs are sums of products of counts (:class:`~...compiler.cost_model.Products`), and a count is linear in the choices:
n_r = base_r + sum_b,i table_b[i, r] z[b, i]. A product n_r n_s becomes linear by splitting n_r over the options of each
block b that n_s depends on. With A = n_r without b's own part, between A_min and A_max:

    w[b, i] = A z[b, i]:   sum_i w[b, i] = A,   A_min z[b, i] <= w[b, i] <= A_max z[b, i]

which is exact at whole choices, and tight between them. HiGHS solves it (through scipy), to a gap that is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from ...compiler.cost_model import Products
from ...compiler.native_output import dropped

Floats = npt.NDArray[np.float64]
# scipy ships no types, and what is inferred from its defaults are single numbers.
_bounds: Any = Bounds
_constraint: Any = LinearConstraint


@dataclass(frozen=True, eq=False)
class Choices:
    """What there is to choose from, and what every choice does to the counts."""

    base: Floats
    """[counts]: what the counts are made of besides the choices."""
    tables: Sequence[Floats]
    """Per block [options, counts]: what each of its options adds."""
    damage: Sequence[Floats]
    """Per block [options]."""

    def counts(self, chosen: Sequence[int]) -> Floats:
        """Return the counts of a choice: an option per block."""
        return self.base + sum((t[i] for t, i in zip(self.tables, chosen, strict=True)), np.zeros(len(self.base)))


@dataclass(frozen=True, eq=False)
class Ceiling:
    """A cost that must not exceed ``at_most``."""

    cost: Products
    at_most: float


@dataclass(frozen=True)
class Solution:
    """The best choice found."""

    chosen: tuple[int, ...]
    """An option per block."""
    damage: float
    gap: float
    """How much better, relative to the damage, another choice could at most be."""


def solve(
    choices: Choices, ceilings: Sequence[Ceiling], *, seconds: float = 20.0, gap: float = 1e-3
) -> Solution | None:
    """Find the choice that does the least damage within all ceilings.

    Args:
        choices: Blocks, options, counts and damage.
        ceilings: Budgets.
        seconds: After so long the best choice found by then is taken.
        gap: Relative distance from the best possible that is good enough.

    Returns:
        ``None`` if there is no choice within the ceilings, or none was found in time.
    """
    problem = _Problem(choices)
    for ceiling in ceilings:
        problem.limit(ceiling)
    return problem.solve(seconds, gap)


class _Problem:
    """The program under construction: variables, and rows ``low <= a x <= high``."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        # What the first options add goes into the base, so that a table is zero wherever nothing varies.
        self.base = choices.counts([0] * len(choices.tables))
        self.tables = [table - table[0] for table in choices.tables]
        self.first: list[int] = []
        self.variables = 0
        for table in choices.tables:
            self.first.append(self.variables)
            self.variables += len(table)
        self.binaries = self.variables
        self.entries: list[tuple[int, int, float]] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self.varying: list[list[int]] = [[] for _ in self.base]
        """Count -> blocks that it depends on."""
        for b, table in enumerate(self.tables):
            for r in np.flatnonzero(table.any(axis=0)):
                self.varying[r].append(b)
        self.split: dict[tuple[int, int], int] = {}
        for b, table in enumerate(choices.tables):
            self._row({self.first[b] + i: 1.0 for i in range(len(table))}, 1.0, 1.0)

    def _row(self, coefficients: dict[int, float], low: float, high: float) -> None:
        row = len(self.low)
        self.entries += [(row, variable, value) for variable, value in coefficients.items() if value]
        self.low.append(low)
        self.high.append(high)

    def limit(self, ceiling: Ceiling) -> None:
        """Add a budget, scaled to 1."""
        total: dict[int, float] = {}
        constant = ceiling.cost.fixed
        for row, coefficient in zip(ceiling.cost.rows, ceiling.cost.coefficients, strict=True):
            free = [int(r) for r in row if self.varying[r]]
            coefficient *= float(np.prod([self.base[r] for r in row if not self.varying[r]]))
            if not coefficient:
                continue
            free.sort(key=lambda r: -len(self.varying[r]))
            while len(free) > 2:  # a tensor with three pruned axes: one of them is taken at its widest
                coefficient *= self._range(free.pop(), None)[1]
            if len(free) == 2:
                constant += self._product(free[0], free[1], coefficient, total)
            elif free:
                constant += self._linear(free[0], coefficient, total)
            else:
                constant += coefficient
        scale = max(abs(ceiling.at_most), 1e-12)
        self._row({v: c / scale for v, c in total.items()}, -np.inf, (ceiling.at_most - constant) / scale)

    def _linear(self, r: int, coefficient: float, total: dict[int, float], without: int | None = None) -> float:
        """Add ``coefficient`` times a count, leaving one block's part out; return the constant."""
        for b in self.varying[r]:
            if b != without:
                for i, value in enumerate(self.tables[b][:, r]):
                    _add(total, self.first[b] + i, coefficient * float(value))
        return coefficient * float(self.base[r])

    def _range(self, r: int, without: int | None) -> tuple[float, float]:
        """Smallest and largest value of a count, one block's part left out."""
        parts = [self.tables[b][:, r] for b in self.varying[r] if b != without]
        base = float(self.base[r])
        return base + float(sum(p.min() for p in parts)), base + float(sum(p.max() for p in parts))

    def _product(self, r: int, s: int, coefficient: float, total: dict[int, float]) -> float:
        """Add ``coefficient`` times the product of two counts; return the constant."""
        constant = self._linear(r, coefficient * float(self.base[s]), total)
        for b in self.varying[s]:
            table = self.tables[b]
            start = self._split(r, b)
            for i in range(len(table)):
                value = coefficient * float(table[i, s])
                # The block's own part of the other count is known once the option is.
                _add(total, self.first[b] + i, value * float(table[i, r]))
                _add(total, start + i, value)
        return constant

    def _split(self, r: int, b: int) -> int:
        """Return the first of the variables w[b, i] = A z[b, i], where A is count ``r`` without the part of ``b``."""
        if (r, b) in self.split:
            return self.split[r, b]
        start, options = self.variables, len(self.tables[b])
        self.split[r, b] = start
        self.variables += options
        low, high = self._range(r, b)
        total: dict[int, float] = {}
        constant = self._linear(r, -1.0, total, without=b)
        self._row({**total, **{start + i: 1.0 for i in range(options)}}, -constant, -constant)
        for i in range(options):
            self._row({start + i: 1.0, self.first[b] + i: -low}, 0.0, np.inf)
            self._row({start + i: 1.0, self.first[b] + i: -high}, -np.inf, 0.0)
        return start

    def solve(self, seconds: float, gap: float) -> Solution | None:
        """Hand over to HiGHS."""
        damage = np.zeros(self.variables)
        if self.binaries:
            damage[: self.binaries] = np.concatenate([np.asarray(d, dtype=np.float64) for d in self.choices.damage])
        rows, columns, values = (np.array(part) for part in zip(*self.entries, strict=True))
        matrix = csr_array((values, (rows.astype(int), columns.astype(int))), shape=(len(self.low), self.variables))
        whole = np.arange(self.variables) < self.binaries
        with dropped():  # HiGHS forgets now and then that it was told to be silent
            found = milp(
                damage,
                integrality=whole.astype(int),
                bounds=_bounds(np.where(whole, 0.0, -np.inf), np.where(whole, 1.0, np.inf)),
                constraints=_constraint(matrix, np.array(self.low), np.array(self.high)),
                options={"time_limit": seconds, "mip_rel_gap": gap},
            )
        if found.x is None:
            return None
        chosen = tuple(
            int(np.argmax(found.x[start : start + len(table)]))
            for start, table in zip(self.first, self.tables, strict=True)
        )
        total = float(sum(d[i] for d, i in zip(self.choices.damage, chosen, strict=True)))
        return Solution(chosen, total, float(found.mip_gap or 0.0))


def _add(total: dict[int, float], variable: int, value: float) -> None:
    if value:
        total[variable] = total.get(variable, 0.0) + value
