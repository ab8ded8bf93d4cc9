"""Which channels stay: levels per block, and the order in which they are lowered.

A block keeps ``size * level / levels`` of each of its cells, the best-scored first, so every balance holds at every
level. All budgets are prefixes of one ordered list of *steps* (lower one block by one level):

* ``uniform``: by the fraction that the block would still keep, so all blocks shrink together;
* ``global``: by the score of the channels that would go, relative to their group's mean unless scores compare as they
  are.

Costs fall along the list, so a budget is found by bisection.

Behind a cut (:mod:`.cuts`) only those channels can stay that stay in front of it. The level of a block there says

* which of them are wanted, whatever is in front: those that are not, and those that are gone, go;
* with ``beyond``, how many more are to go than went in front, so that what is left is linear in both levels.

Channels in front of cuts that are wanted behind none, and that nothing else reads, go too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ...compiler.dependency import Block, ChannelDependencies, ChannelGroup
from ...compiler.labels import ChannelLabels
from .criteria.base import Scores
from .subsets import Subsets

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """What every choice must respect."""

    round_to: int = 1
    min_width: int = 1
    max_ratio: float = 1.0
    """Fraction of its channels that any block may lose."""


class Selection:
    """All blocks of a program laid out flat, and the keep mask for any choice of levels."""

    def __init__(
        self,
        deps: ChannelDependencies,
        scores: Scores,
        limits: Limits,
        frozen: Callable[[ChannelGroup], bool],
        *,
        relative: bool = True,
        subsets: Subsets | None = None,
        beyond: bool = False,
    ) -> None:
        """Lay the blocks out.

        Args:
            deps: The analysis.
            scores: [classes].
            limits: What every choice must respect.
            frozen: Tells which groups stay as they are.
            relative: Whether scores compare within a group only, so that ``global`` divides them by the group's mean.
            subsets: What stays behind cuts, if there are some.
            beyond: What the levels of blocks behind cuts mean; see the module.
        """
        self._subsets, self._beyond = subsets, beyond
        self.computed = any(pin.computed for pin in deps.pins)
        """Whether channels stay because weights are computed from others."""
        self._relative = relative
        self.blocks: list[Block] = []
        self.group_of: list[ChannelGroup] = []
        for group in deps.groups:
            for block in group.blocks:
                self.blocks.append(block)
                self.group_of.append(group)
        count = int(deps.class_of.max()) + 1 if len(deps.class_of) else 0
        self._lay_out(count)
        forced = self._forced(deps, scores)
        self._rank(scores, forced)
        self.allowed: list[Ints] = [
            np.array([block.levels]) if frozen(group) else _allowed_levels(block, limits, forced)
            for block, group in zip(self.blocks, self.group_of, strict=True)
        ]
        self.full: Ints = np.array([b.levels for b in self.blocks], dtype=np.int64)
        self.scores = scores

    def _lay_out(self, count: int) -> None:
        self._cell = np.full(count, -1, dtype=np.int64)
        self.units = np.ones(count, dtype=np.int64)
        """Channels that each class stands for."""
        self._members: list[Ints] = []
        sizes: list[int] = []
        owners: list[int] = []
        for index, block in enumerate(self.blocks):
            self.units[block.classes] = min(block.units)
            for cell in block.cells:
                self._cell[cell] = len(sizes)
                self._members.append(cell)
                sizes.append(len(cell))
                owners.append(index)
        self._sizes, self._owner = np.array(sizes, dtype=np.int64), np.array(owners, dtype=np.int64)

    def _forced(self, deps: ChannelDependencies, scores: Scores) -> Bools:
        """Classes that always stay: the pinned, and the best of every tensor axis that could otherwise be emptied."""
        forced = np.zeros(len(self._cell), dtype=np.bool_)
        for block in self.blocks:
            forced[block.classes[block.pinned]] = True
        seen: set[int] = set()
        inside = np.zeros(len(self._cell), dtype=np.bool_)
        for labels in deps.labels.values():
            for factor in _factors(labels):
                if id(factor) in seen or not len(factor):
                    continue
                seen.add(id(factor))
                classes = deps.class_of[factor]
                inside[classes] = True
                if not self._cannot_empty(classes, inside, forced):
                    forced[classes[int(scores[classes].argmax())]] = True
                inside[classes] = False
        if self._subsets is not None:
            for classes in self._subsets.behind:
                if not forced[classes].any():  # a cell's best may have gone in front of the cut
                    forced[classes[int(scores[classes].argmax())]] = True
            # What always stays behind a cut always stays in front of it.
            forced[self._subsets.outer[forced[self._subsets.inner]]] = True
        self._always = forced
        return forced

    def _cannot_empty(self, classes: Ints, inside: Bools, forced: Bools) -> bool:
        """Tell whether some class always stays: one that no block holds, a forced one, or a whole cell's best."""
        cells = self._cell[classes]
        if int(cells.min()) < 0 or bool(forced[classes].any()):
            return True
        if bool(inside[self._members[cells[0]]].all()):
            return True
        return any(bool(inside[self._members[c]].all()) for c in np.unique(cells))

    def _rank(self, scores: Scores, forced: Bools) -> None:
        """Order each cell: forced classes first, then by falling score, then by index."""
        effective = np.where(forced, np.inf, scores)
        order = np.lexsort((np.arange(len(scores)), -effective, self._cell))
        cells = self._cell[order]
        first = np.searchsorted(cells, cells, side="left")
        self._place = np.empty(len(order), dtype=np.int64)
        self._place[order] = np.arange(len(order)) - first

    def keep(self, levels: Ints) -> Bools:
        """Return the classes that stay at these block levels."""
        quota = self._sizes * levels[self._owner] // self.full[self._owner]
        kept = np.ones(len(self._cell), dtype=np.bool_)
        inside = self._cell >= 0
        kept[inside] = self._place[inside] < quota[self._cell[inside]]
        return kept if self._subsets is None else self._through_cuts(kept, quota, self._subsets)

    def _through_cuts(self, kept: Bools, quota: Ints, subsets: Subsets) -> Bools:
        allowed = subsets.allowed(kept)
        if self._beyond:
            inner = self._behind
            cells, offers = self._cell[inner], allowed[inner]
            before = np.cumsum(offers) - offers  # how many are offered in front of each, in all cells
            place = before - before[self._first_of_cell]
            offered = np.bincount(cells[offers], minlength=len(quota))
            kept[inner] = place < (offered - self._sizes + quota)[cells]
            kept |= self._always
        kept &= allowed
        kept &= ~subsets.unread(kept) | self._always
        kept[self._last_in_front(kept)] = True
        return kept

    @cached_property
    def _behind(self) -> Ints:
        """Classes behind cuts that there is a choice of, cell by cell, in the order in which they stay."""
        behind = np.empty(0, dtype=np.int64) if self._subsets is None else np.unique(self._subsets.inner)
        behind = behind[self._cell[behind] >= 0]
        return behind[np.lexsort((self._place[behind], self._cell[behind]))]

    @cached_property
    def _first_of_cell(self) -> Ints:
        """For each of them, which is the first of its cell."""
        cells = self._cell[self._behind]
        return np.searchsorted(cells, cells, side="left")

    def _last_in_front(self, kept: Bools) -> list[int]:
        """Return the best of every cell in front of cuts that nobody reads anything of: a layer gives one at least."""
        inside = self._cell >= 0
        left = np.bincount(self._cell[inside], weights=kept[inside], minlength=len(self._members))
        behind = np.zeros(len(self._members), dtype=np.bool_)
        behind[self._cell[self._behind]] = True
        empty = [self._members[cell] for cell in np.flatnonzero((left == 0) & ~behind)]
        return [int(cell[self._place[cell].argmin()]) for cell in empty]

    def leave_whole(self, wanted: Bools, stays: Bools) -> bool:
        """Lower blocks no more of which all stays that can, although less was wanted; tell whether there are any."""
        found = False
        for index, block in enumerate(self.blocks):
            more = bool((stays & ~wanted)[block.classes].any())
            if more and len(self.allowed[index]) > 1 and self._offered(block, stays) == int(stays[block.classes].sum()):
                self.allowed[index] = self.allowed[index][-1:]
                found = True
        return found

    def _offered(self, block: Block, stays: Bools) -> int:
        """Return how many classes of a block could stay, given what stays in front of cuts."""
        allowed = stays if self._subsets is None else self._subsets.allowed(stays)
        return int(allowed[block.classes].sum())

    def lowest(self) -> Ints:
        """Return the smallest legal levels."""
        return np.array([allowed[0] for allowed in self.allowed], dtype=np.int64)

    def kept_scores(self, index: int) -> npt.NDArray[np.float64]:
        """Return the sum of the scores that a block keeps, per level from 0: [levels + 1]."""
        return np.cumsum(self._per_level(index)[0])

    def _per_level(self, index: int) -> tuple[npt.NDArray[np.float64], Ints]:
        """Return the sum and the number of scores that each level adds to the one below it: [levels + 1] each."""
        block = self.blocks[index]
        size = self._sizes[self._cell[block.classes]]
        level = self._place[block.classes] * block.levels // size + 1  # the level from which on a class is kept
        totals = np.bincount(level, weights=self.scores[block.classes], minlength=block.levels + 1)
        return totals.astype(np.float64), np.bincount(level, minlength=block.levels + 1).astype(np.int64)

    def at_ratio(self, ratio: float | Mapping[int, float]) -> Ints:
        """Return the levels that remove ``ratio`` of each block (per block index if a mapping), rounded down."""
        levels = self.full.copy()
        for index, allowed in enumerate(self.allowed):
            wanted = ratio.get(index, 0.0) if isinstance(ratio, Mapping) else ratio
            kept = int(self.full[index]) - int(int(self.full[index]) * wanted + 1e-9)
            levels[index] = allowed[::-1][np.abs(allowed[::-1] - kept).argmin()]  # the wider of two as near
        return levels

    def steps(self, scope: str) -> Steps:
        """Return all legal steps in the order of the scope."""
        blocks: list[Ints] = []
        targets: list[Ints] = []
        keys: list[npt.NDArray[np.float64]] = []
        for index, allowed in enumerate(self.allowed):
            if len(allowed) < 2:
                continue
            falling = allowed[::-1]
            blocks.append(np.full(len(falling) - 1, index))
            targets.append(falling[1:])
            if scope == "uniform":
                keys.append(-(falling[:-1] + falling[1:]) / (2.0 * self.full[index]))
            else:
                keys.append(self._step_scores(index, falling))
        if not blocks:
            return Steps(np.empty(0, np.int64), np.empty(0, np.int64), self.full)
        block, target, key = np.concatenate(blocks), np.concatenate(targets), np.concatenate(keys)
        order = np.lexsort((block, key))
        return Steps(block[order], target[order], self.full)

    def _step_scores(self, index: int, falling: Ints) -> npt.NDArray[np.float64]:
        """Mean relative score of the classes that each step removes, made to rise along the block."""
        mean = (float(self.scores[self.group_of[index].classes].mean()) or 1.0) if self._relative else 1.0
        totals, counts = self._per_level(index)
        total, number = np.cumsum(totals / mean), np.cumsum(counts)
        high, low = falling[:-1], falling[1:]
        means = (total[high] - total[low]) / np.maximum(number[high] - number[low], 1)
        return np.maximum.accumulate(means)


@dataclass(frozen=True)
class Steps:
    """Steps in order; a prefix of them is a choice."""

    block: Ints
    target: Ints
    full: Ints

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.block)

    def levels(self, prefix: int) -> Ints:
        """Return the levels after the first ``prefix`` steps."""
        levels = self.full.copy()
        np.minimum.at(levels, self.block[:prefix], self.target[:prefix])
        return levels


def _factors(labels: object) -> Sequence[Ints]:
    if isinstance(labels, ChannelLabels):
        return [f.atoms for f in labels.factors if len(f.axes) == 1]
    if isinstance(labels, tuple):
        return [a for part in labels for a in _factors(part)]
    return []


def _allowed_levels(block: Block, limits: Limits, forced: Bools) -> Ints:
    """Return the legal levels of a block, rising; the last is the full width."""
    sizes = np.array([len(c) for c in block.cells])
    must = np.array([int(forced[c].sum()) for c in block.cells])
    levels = np.arange(1, block.levels, dtype=np.int64)
    # A quota of size * level / levels covers what must stay from this level on, in every cell.
    lowest = int((-(-must * block.levels // sizes)).max())
    lowest = max(lowest, block.levels - int(block.levels * limits.max_ratio + 1e-9))
    narrowest = block.widths(levels)
    least = min(limits.min_width, min(block.units) * int(sizes.sum()))
    legal = (levels >= lowest) & (narrowest >= least)
    for unit in block.units:
        legal &= unit * block.kept(levels) % limits.round_to == 0
    return np.append(levels[legal], block.levels)
