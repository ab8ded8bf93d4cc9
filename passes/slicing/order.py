"""In which order kept channels stand, where that is free: runs of classes that keep together everywhere.

A *unit* is a chain of classes that stand side by side, in the same order, in every tensor that has any of them. Its
channels may be permuted: all tensors that hold the unit hold the whole of it, so movement moves it as one piece.
Channels that are picked one by one, split between pieces or arranged over several axes are in no unit, and stay put.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...compiler.dependency import ChannelDependencies
from ...compiler.labels import ChannelLabels

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Order:
    """Units of classes, and ranks that say how each unit's classes are to stand."""

    unit: Ints
    """[classes]: -1 for none."""
    place: Ints
    """[classes]: where a class stands in its unit."""
    rank: Ints
    """[classes]: where it is to stand, among those of its unit."""

    def arrange(self, classes: Ints) -> Ints:
        """Return the positions of an axis with these classes, in the new order."""
        unit, place = self.unit[classes], self.place[classes]
        starts = np.ones(len(classes), dtype=np.bool_)
        starts[1:] = (unit[1:] != unit[:-1]) | (unit[1:] < 0) | (place[1:] < place[:-1])
        positions = np.arange(len(classes))
        return np.lexsort((positions, self.rank[classes], np.cumsum(starts)))


def natural_order(deps: ChannelDependencies) -> Order:
    """Find the units; ranks are the present order."""
    count = int(deps.class_of.max()) + 1 if len(deps.class_of) else 0
    none = count
    free = np.ones(count + 1, dtype=np.bool_)
    free[none] = False
    pairs: list[Ints] = []
    for classes, single in _axes(deps):
        if not single:
            free[classes] = False
            continue
        run = classes[np.append(True, classes[1:] != classes[:-1])]
        pairs.append(np.stack([np.append(none, run), np.append(run, none)]))
    ends = [end for node, gather in deps.gathers.items() for end in (gather.source, node)]
    picked = [atoms for end in ends for atoms in _factors(deps.labels.get(end))]
    for atoms in [*picked, *(pin.atoms for pin in deps.pins)]:  # what is pinned may be known by its position
        free[deps.class_of[atoms.ravel()]] = False
    follows = np.unique(np.concatenate(pairs, axis=1), axis=1) if pairs else np.empty((2, 0), dtype=np.int64)
    followers, leaders = (np.bincount(side, minlength=count + 1) for side in follows)
    before, after = follows[:, (followers[follows[0]] == 1) & (leaders[follows[1]] == 1)]
    linked = free[before] & free[after]
    following = np.full(count + 1, -1, dtype=np.int64)
    following[before[linked]] = after[linked]
    return _chains(following[:count], free[:count])


def _chains(following: Ints, free: Bools) -> Order:
    count = len(following)
    unit, place = np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=np.int64)
    heads = np.setdiff1d(np.flatnonzero(free), following[following >= 0])
    for number, head in enumerate(heads.tolist()):
        at, step = head, 0
        while at >= 0:
            unit[at], place[at] = number, step
            at, step = int(following[at]), step + 1
    return Order(unit, place, place.copy())


def _axes(deps: ChannelDependencies) -> Iterator[tuple[Ints, bool]]:
    """Yield the classes along every axis that has some, and whether each position along it is one channel."""
    arrays: list[npt.NDArray[np.int64]] = [use.atoms for use in deps.slices]
    arrays += list(deps.norms.values())
    for labels in deps.labels.values():
        arrays += _factors(labels)
    for balance in deps.balances:
        arrays += [balance.cells] + ([balance.partner] if balance.partner is not None else [])
    for atoms in {id(a): a for a in arrays}.values():
        if atoms.size:
            yield deps.class_of[atoms.ravel()], atoms.size == len(atoms)


def _factors(labels: Any) -> list[npt.NDArray[np.int64]]:
    if isinstance(labels, ChannelLabels):
        return [factor.atoms for factor in labels.factors]
    if isinstance(labels, dict):
        labels = tuple(labels.values())
    return [atoms for part in labels for atoms in _factors(part)] if isinstance(labels, (tuple, list)) else []
