"""Unconstrained pruning: how layers read fewer channels than others do, as a slice, as a gather, or not at all.

Channels in front of cuts are put in an order in which as many layers as possible find what they read in one place
(``slicing.consecutive``). What a layer wants, n of w channels that span h, it then gets in the way that takes least:

    gather  CALL + GATHERED n size            slice  CALL + SLICED h size + (h - n) reading
    all     (w - n) reading

for ``size`` elements per channel and ``reading`` MACs that the layer spends on a channel. More than it wants does no
harm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from ...compiler.dependency import Cut
from ..slicing.consecutive import consecutive_order
from ..slicing.order import Order, natural_order
from ..slicing.rewrite import positions_behind
from ..slicing.tensors import KeptChannels
from .cuts import GATHERED, Opened, Site

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

SLICED: Final = 8
"""MACs in the time that an element of a slice takes: some engines read it where it stands, others copy all in one."""
CALL: Final = 100_000
"""MACs in the time of one more call."""


@dataclass(frozen=True, eq=False)
class Unconstrained:
    """Decides how what a choice wants is read."""

    opened: Opened
    paying: bool
    """Whether layers read more than they want where that takes less time."""

    @cached_property
    def layer_of(self) -> dict[str, str]:
        """Name of a group of channels behind cuts -> the layer that reads them."""
        deps = self.opened.deps
        reader = {
            class_: site.layer
            for site in self.opened.sites
            for cut in site.cuts
            for class_ in deps.class_of[deps.cuts[cut].atoms].tolist()
        }
        return {g.name: reader[first] for g in deps.groups if (first := int(g.classes[0])) in reader}

    @cached_property
    def order(self) -> Order:
        """The present order."""
        return natural_order(self.opened.deps)

    def settle(self, keep: Bools) -> KeptChannels:
        """Return what stays and where.

        Args:
            keep: [classes] that are wanted.
        """
        if not self.opened.sites:
            return KeptChannels(self.opened.deps, keep)
        kept = KeptChannels(self.opened.deps, keep, self._arranged(keep))
        if not self.paying:
            return kept
        widened = keep.copy()
        for site in self.opened.sites:
            rows = int(keep[site.outputs].sum()) if len(site.outputs) else 1
            for cut, size, picked in self._picked(site, kept):
                outer = kept.positions(cut.source)  # where they will stand -> where they stand
                low, high = _cheapest(picked, len(outer), size, site.macs * rows)
                if high:
                    inner = self.opened.deps.class_of[cut.atoms]
                    widened[inner[outer[low:high]]] = True
        return KeptChannels(self.opened.deps, widened, kept.order)

    def report(self, kept: KeptChannels) -> Iterator[tuple[str, int, int, int, int]]:
        """Yield layers that do not read all: name, channels read, channels offered, slices, gathers."""
        for site in self.opened.sites:
            read = offered = slices = gathers = 0
            for cut, _, picked in self._picked(site, kept):
                whole = int(kept.mask(cut.source).sum())
                read, offered = read + len(picked), offered + whole
                run = bool((np.diff(picked) == 1).all())
                slices += run and len(picked) < whole
                gathers += not run
            if slices or gathers:
                yield site.layer, read, offered, slices, gathers

    def _picked(self, site: Site, kept: KeptChannels) -> Iterator[tuple[Cut, int, Ints]]:
        for node, size in zip(site.cuts, site.sizes, strict=True):
            cut = self.opened.deps.cuts[node]
            yield cut, size, positions_behind(kept, cut)

    def _arranged(self, keep: Bools) -> Order:
        """Put channels in an order in which as many cuts as possible are slices, large copies first."""
        class_of, cuts = self.opened.deps.class_of, self.opened.deps.cuts
        wanted: dict[int, list[tuple[int, frozenset[int]]]] = {}
        for site in self.opened.sites:
            for node, size in zip(site.cuts, site.sizes, strict=True):
                outer, stays = class_of[cuts[node].source], keep[class_of[cuts[node].atoms]]
                unit = self.order.unit[outer]
                if unit[0] >= 0 and (unit == unit[0]).all() and not stays[keep[outer]].all():
                    chosen = frozenset(outer[stays].tolist())
                    wanted.setdefault(int(unit[0]), []).append((size * len(chosen), chosen))
        rank = self.order.rank.copy()
        for unit, sets in wanted.items():
            inside = np.flatnonzero((self.order.unit == unit) & keep)
            largest = [chosen for _, chosen in sorted(sets, key=lambda pair: -pair[0])]
            arranged = _arranged(largest, inside[np.argsort(self.order.place[inside])])
            rank[arranged] = np.arange(len(arranged))
        for cut in cuts.values():
            rank[class_of[cut.atoms]] = rank[class_of[cut.source]]
        return Order(self.order.unit, self.order.place, rank)


def _arranged(sets: list[frozenset[int]], classes: Ints) -> list[int]:
    """Order classes so that the sets are consecutive, the first ones first; classes in the same sets stay together."""
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for class_ in classes.tolist():
        kinds.setdefault(tuple(class_ in chosen for chosen in sets), []).append(class_)
    members = list(kinds.items())
    columns = [frozenset(i for i, (kind, _) in enumerate(members) if kind[k]) for k in range(len(sets))]
    return [class_ for leaf in consecutive_order(range(len(members)), columns) for class_ in members[leaf][1]]


def _cheapest(picked: Ints, whole: int, size: int, reading: float) -> tuple[int, int]:
    """Return the range of channels to read; (0, 0) for those that were picked and no others."""
    low, high = int(picked[0]), int(picked[-1]) + 1
    wanted = len(picked)
    span = high - low
    ways = {
        (0, whole): (whole - wanted) * reading,
        (low, high): CALL + SLICED * size * span + (span - wanted) * reading,
        (0, 0): CALL + GATHERED * size * wanted,
    }
    return min(ways, key=lambda way: ways[way])
