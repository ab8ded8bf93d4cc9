"""From budgets to levels: which search answers them, and for milliseconds, the measurements that keep it honest.

* one budget, scope ``uniform`` or ``global``: steps in a fixed order, as many as it takes (:mod:`.budget`);
* ``knapsack``: all widths at once, within one budget or several (:mod:`.allocation`).

A budget in milliseconds is searched with a model of them (:mod:`.latency`). The network found is then timed in pairs
with the dense one, and where it misses the request, the search aims beside it by as much, until it hits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from ...compiler.cost_model import CostModel
from ...compiler.dependency import ChannelDependencies
from ...compiler.errors import BudgetError, OptionError
from ...compiler.program import Program
from .allocation import Limit, allocate
from .budget import TOLERANCE, Budget, meet
from .criteria.base import Progress
from .damage import Floats
from .latency import LatencyModel, Stopwatch, learn
from .selection import Bools, Ints, Selection

Scope = Literal["uniform", "global", "knapsack"]
LATENCY: Final = "latency"
ROUNDS: Final = 4
"""How often at most a latency is aimed at."""
CLOSE: Final = 0.02
"""Relative distance from the requested latency that is close enough to stop."""
EXCESS: Final = 0.002
"""Relative excess over a counted budget that is small enough to stop."""
MISSED: Final = 0.05
"""Relative distance from the requested latency at which a remark says that it was missed."""


@dataclass(frozen=True, eq=False)
class Widths:
    """A search for widths within budgets."""

    program: Program
    deps: ChannelDependencies
    selection: Selection
    scope: Scope
    budgets: Mapping[str, float]
    """Name of a cost (channels, params, macs, bytes, latency) -> fraction that may stay."""
    damage: Callable[[], Sequence[Floats]]
    """Per block, at each level: what the knapsack keeps low."""
    prune: Callable[[Bools], Program]
    """From the classes that stay to a pruned program."""
    stopwatch: Stopwatch | None = None
    """What to measure latency with."""
    seed: int = 0
    progress: Progress = lambda text: None
    notes: list[str] = field(default_factory=list[str])
    """Takes what the user should know."""
    stats: dict[str, int | float] = field(default_factory=dict[str, "int | float"])
    """Takes figures."""
    settle: Callable[[Bools], Bools] = lambda keep: keep
    """From the classes that are wanted to those that stay, perhaps more of them."""

    def levels(self) -> Ints:
        """Return the level of every block.

        Raises:
            BudgetError: The smallest legal widths exceed a budget.
            OptionError: There is nothing to measure latency with.
        """
        model = CostModel(self.program, self.deps)
        levels = self._in_time(model) if LATENCY in self.budgets else self._counted(model)
        for name, reached in self._reached(model, levels).items():
            fraction = self.budgets[name]
            # Where several budgets hold, that of one of them is not used up says nothing.
            if abs(reached - fraction) > TOLERANCE and (len(self.budgets) == 1 or reached > fraction):
                self.notes.append(f"{name}={fraction:g} was asked for; legal widths come as near as {reached:.4f}")
        return levels

    def _counted(self, model: CostModel) -> Ints:
        """Search. What stays may exceed budgets that what is wanted keeps to: then search again.

        Blocks of which all stays, wanted or not, are left whole from then on; where there are none, aim lower.
        """
        aims = dict(self.budgets)
        levels = self._search(model, aims, None)
        while self.scope == "knapsack":
            over = {n: r / self.budgets[n] for n, r in self._reached(model, levels).items() if r > self.budgets[n]}
            if max(over.values(), default=1.0) <= 1.0 + EXCESS:
                break
            wanted = self.selection.keep(levels)
            if not self.selection.leave_whole(wanted, self.settle(wanted)):
                aims |= {name: aims[name] / excess for name, excess in over.items()}
            levels = self._search(model, aims, None)
        return levels

    def _reached(self, model: CostModel, levels: Ints) -> dict[str, float]:
        """Return the fractions of counted costs that stay."""
        whole, kept = self.selection.keep(self.selection.full), self.selection.keep(levels)
        costs = {name: self._cost(model, name) for name in self.budgets if name != LATENCY}
        return {name: cost(kept) / max(cost(whole), 1e-12) for name, cost in costs.items()}

    def _cost(self, model: CostModel, name: str, latency: LatencyModel | None = None) -> Callable[[Bools], float]:
        if name == "channels":
            unowned = len(self.selection.scores) - int(self.selection.keep(self.selection.full).sum())
            return lambda keep: int(self.selection.units[self.settle(keep)].sum()) - unowned
        if name == LATENCY:
            assert latency is not None
            return lambda keep: latency(model.counts(keep))
        products = {"params": model.params, "macs": model.macs, "bytes": model.bytes}[name]
        return lambda keep: products(model.counts(self.settle(keep)))

    def _search(self, model: CostModel, budgets: Mapping[str, float], latency: LatencyModel | None) -> Ints:
        if self.scope != "knapsack":
            ((name, fraction),) = budgets.items()
            return meet(Budget(name, fraction, self._cost(model, name, latency)), self.selection, self.scope)
        costs = {"params": model.params, "macs": model.macs, "bytes": model.bytes}
        if latency is not None:
            costs[LATENCY] = latency.products
        extend = latency.extend if latency is not None else lambda counts: counts.astype(np.float64)
        whole = extend(model.counts(self.selection.keep(self.selection.full)))
        limits = [Limit(name, kept, costs[name], kept * costs[name](whole)) for name, kept in budgets.items()]
        self.progress("choosing widths")
        found = allocate(
            self.selection, model, self.damage(), limits, extend=extend, multiple=max(latency.blocks) if latency else 1
        )
        self.stats["damage"], self.stats["gap"] = found.damage, found.gap
        return found.levels

    def _in_time(self, model: CostModel) -> Ints:
        if self.stopwatch is None:
            raise OptionError(
                "a budget in milliseconds needs an engine to measure them on, and none was handed to prune",
                hint="compile through the command line or secateur.compile, which hand it over",
            )
        latency = learn(
            model, self.selection, self.prune, self.stopwatch,
            seed=self.seed, progress=self.progress,
        )  # fmt: skip
        wanted = self.budgets[LATENCY]
        aim, best = wanted, None
        for attempt in range(ROUNDS):
            try:
                levels = self._search(model, {**self.budgets, LATENCY: aim}, latency)
            except BudgetError:
                if best is None:
                    raise
                break
            self.progress(f"timing the pruned network on {self.stopwatch.conditions}, attempt {attempt + 1}")
            times = self.stopwatch.compare([self.program, self.prune(self.selection.keep(levels))])
            found = _Timed(levels, float(np.median(times[:, 1] / times[:, 0])), *map(float, np.median(times, axis=0)))
            if best is None or abs(found.fraction - wanted) < abs(best.fraction - wanted):
                best = found
            if abs(found.fraction - wanted) <= CLOSE * wanted:
                break
            aim *= wanted / found.fraction
        assert best is not None
        self.stats.update(
            {
                "dense_ms": 1e3 * best.dense,
                "pruned_ms": 1e3 * best.pruned,
                "latency": best.fraction,
                "block_out": latency.blocks[0],
                "block_in": latency.blocks[1],
                "model_error": latency.error,
            }
        )
        self.notes.append(
            f"on {self.stopwatch.conditions}: {1e3 * best.dense:.2f} ms became {1e3 * best.pruned:.2f} ms, "
            f"{best.fraction:.3f} of them"
        )
        if abs(best.fraction - wanted) > MISSED * wanted:
            self.notes.append(f"latency={wanted:g} was asked for; legal widths came as near as {best.fraction:.3f}")
        return best.levels


@dataclass(frozen=True, eq=False)
class _Timed:
    levels: Ints
    fraction: float
    """Time relative to the dense network's, round by round: the median."""
    dense: float
    """Seconds."""
    pruned: float
