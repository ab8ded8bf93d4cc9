"""Which classes of channels may go together: never the pinned, never a whole tensor, and in balance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ...compiler.dependency import Balance, ChannelDependencies
from ...compiler.labels import ChannelLabels

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class Legality:
    """The limits on removing channels from one program. Masks are over classes."""

    def __init__(self, deps: ChannelDependencies) -> None:
        count = int(deps.class_of.max()) + 1 if len(deps.class_of) else 0
        self.candidates: Bools = np.zeros(count, dtype=np.bool_)
        """Classes that some layer gives and nothing pins."""
        for group in deps.groups:
            for block in group.blocks:
                self.candidates[block.classes[~block.pinned]] = True
        axes = {id(atoms): atoms for labels in deps.labels.values() for atoms in _axes(labels)}
        self._axes = [deps.class_of[atoms.ravel()] for atoms in axes.values()]
        self._balances = [b for b in deps.balances if not _is_of_whole_rows(b, deps.class_of)]
        self._class_of = deps.class_of

    def restore(self, removed: Bools) -> dict[int, str]:
        """Put classes back until what is left is legal.

        Args:
            removed: Classes to go, all of them candidates; changed in place.

        Returns:
            Class put back -> why.
        """
        back: dict[int, str] = {}
        before = -1
        while before != len(back):
            before = len(back)
            for classes in self._axes:
                if removed[classes].all():
                    _put_back(removed, classes[:1], "a tensor would be left without channels", back)
            for balance in self._balances:
                self._level(balance, removed, back)
        return back

    def _level(self, balance: Balance, removed: Bools, back: dict[int, str]) -> None:
        """Give every row that keeps anything as many positions as the fullest keeps."""
        rows: Ints = self._class_of[balance.cells]
        kept = (~removed[rows]).sum(1)
        may_empty = np.full(len(rows), balance.droppable)
        if balance.partner is not None:
            may_empty |= removed[self._class_of[balance.partner]].all(1)
        staying = (kept > 0) | ~may_empty
        if not staying.any():
            return  # the rule against empty tensors is about to put one back
        target = max(int(kept[staying].max()), 1)
        for row in np.flatnonzero(staying & (kept < target)):
            for class_ in dict.fromkeys(rows[row].tolist()):
                if int((~removed[rows[row]]).sum()) >= target:
                    break
                if removed[class_]:
                    _put_back(removed, np.array([class_]), balance.reason, back)


def _put_back(removed: Bools, classes: Ints, reason: str, back: dict[int, str]) -> None:
    for class_ in classes.tolist():
        removed[class_] = False
        back[class_] = reason


def _is_of_whole_rows(balance: Balance, class_of: Ints) -> bool:
    """Tell whether every row is one class, so that whatever goes, goes as whole rows."""
    rows = class_of[balance.cells]
    return balance.partner is None and bool((rows == rows[:, :1]).all())


def _axes(labels: Any) -> Iterator[Ints]:
    if isinstance(labels, ChannelLabels):
        yield from (f.atoms for f in labels.factors)
    elif isinstance(labels, (tuple, list)):
        for part in labels:
            yield from _axes(part)
    elif isinstance(labels, dict):
        for part in labels.values():
            yield from _axes(part)
