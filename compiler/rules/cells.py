"""Cells that go as wholes: the other way to satisfy a balance.

Heads and groups need equal counts. Either each keeps as many of its channels, or whole ones go. An analysis with
``whole_cells`` takes the second way: the channels of a cell become one class, by a tie, and so do the cells that belong
together (queries, keys and values of a head, the column of a bias by position). Everything else then follows.

    factor over (head, channel)   ->   factor over (head,): one label per head; within a head nothing may go

What says that rows of channels are cells is an operation that treats them as a batch: a product, a grouped convolution,
a group norm. Operations on the way to it (a norm over a head's channels, a pool of every head) cannot know yet. They
assume it, and where no product confirms it, the analysis is run again without (:func:`refuted`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ..dependency import Cells
from ..labels import ChannelLabels, Factor
from .registry import RuleContext

Ints = npt.NDArray[np.int64]
INSIDE: Final = "it stands inside of heads or groups, which go as wholes"


def may_be_cells(ctx: RuleContext) -> bool:
    """Tell whether rows of channels may be taken for cells at this node."""
    return ctx.whole_cells and ctx.node not in ctx.not_cells


def as_cells(ctx: RuleContext, factor: Factor, rows: Collection[int], reason: str, *, assumed: bool) -> Factor:
    """Let what stands at one place along the axes ``rows`` go as a whole; return the factor over those axes only."""
    inside = [axis for axis in factor.axes if axis not in rows]
    if not inside:
        return factor
    order = [i for i, axis in enumerate(factor.axes) if axis in rows]
    cells = np.moveaxis(factor.atoms, order, range(len(order)))
    cells = cells.reshape(int(np.prod(cells.shape[: len(order)])), -1)
    (ctx.assumed if assumed else ctx.cells).append(Cells(cells, ctx.node, reason))
    for axis in inside:
        collapsed = ctx.collapse(factor, axis, reason)
        assert collapsed is not None
        factor = collapsed
    return factor


def meet(
    ctx: RuleContext, factors: Sequence[Factor], rows: Collection[int], reason: str, *, assumed: bool
) -> Factor | None:
    """Make cells of several factors, along those of the axes ``rows`` that they share, and tie these.

    A factor that has none of these axes stands inside of the cells, and stays. ``None`` if no axis is shared.
    """
    along = [f for f in factors if set(f.axes) & set(rows)]
    common = set(rows).intersection(*(f.axes for f in along)) if along else set[int]()
    for factor in factors:
        if not set(factor.axes) & common:
            ctx.pin(factor.atoms, INSIDE)
    cells = [as_cells(ctx, f, common, reason, assumed=assumed) for f in along] if common else []
    for other in cells[1:]:
        ctx.tie(cells[0].atoms, other.atoms, reason)
    return cells[0] if cells else None


def apart(ctx: RuleContext, labels: ChannelLabels, axis: int) -> ChannelLabels:
    """Return the labels in front of an operation on the vectors along ``axis``, each on its own.

    Where other axes hold cells, these stay labelled, and what stands along ``axis`` inside of each stays.
    """
    factor = labels.factor_at(axis)
    if factor is None or len(factor.axes) == 1 or not may_be_cells(ctx):
        return labels
    rows = [a for a in factor.axes if a != axis]
    size = factor.atoms.shape[factor.axes.index(axis)]
    cells = as_cells(ctx, factor, rows, "an operation inside of each cell", assumed=True)
    inside = Factor((axis,), ctx.fixed(size, INSIDE))
    return ChannelLabels((*labels.without(axis), cells, inside), labels.origin)


def refuted(ctx: RuleContext, class_of: Ints) -> frozenset[str]:
    """Return the nodes where rows were assumed to be cells, and are no cells of any product. The others are."""
    if not ctx.assumed:
        return frozenset()
    whole = _whole(ctx, class_of)
    for atoms in ctx.batches:
        whole[class_of[atoms]] = True
    wrong = frozenset(cells.node for cells in ctx.assumed if not whole[class_of[cells.atoms]].any())
    if not wrong:
        ctx.cells += ctx.assumed
        ctx.assumed = []
    return wrong


def tie_blocks(ctx: RuleContext, class_of: Ints) -> bool:
    """See that what stays of tensors with cells over several axes is a full block: tie all axes but one.

    That is so by itself where a product ties them (queries, keys and values, one behind the other). Where talking
    heads come between, heads of queries and of values are chosen apart, and stand in one tensor all the same.

    Returns:
        Whether something had to be tied, so that the classes are others now.
    """
    if not ctx.cells:
        return False
    whole = _whole(ctx, class_of)
    tied = False
    for node, labels in ctx.env.items():
        for factor in _factors(labels):
            classes = class_of[factor.atoms]
            if len(factor.axes) < 2 or not whole[classes].any():
                continue
            varying = [i for i in range(classes.ndim) if (classes != classes.take([0], axis=i)).any()]
            if len(varying) < 2:
                continue
            ctx.node = node.name
            kept = max(varying, key=lambda i: (_kinds(classes, whole, i), i))
            for axis in [a for i, a in enumerate(factor.axes) if i != kept]:
                collapsed = ctx.collapse(factor, axis, "cells stand in a full block")
                assert collapsed is not None
                factor = collapsed
            tied = True
    return tied


def _whole(ctx: RuleContext, class_of: Ints) -> npt.NDArray[np.bool_]:
    """Return which classes are cells: [classes]."""
    whole = np.zeros(int(class_of.max()) + 1 if len(class_of) else 0, dtype=np.bool_)
    for cells in ctx.cells:
        whole[class_of[cells.atoms]] = True
    return whole


def _kinds(classes: Ints, whole: npt.NDArray[np.bool_], axis: int) -> int:
    """Return how many different cells stand along an axis, at most."""
    lines = np.sort(np.where(whole[classes], classes, -1), axis=axis)
    new = (np.diff(lines, axis=axis) > 0).sum(axis=axis) + 1
    return int((new - (lines.take(0, axis=axis) < 0)).max())


def _factors(labels: object) -> list[Factor]:
    if isinstance(labels, ChannelLabels):
        return list(labels.factors)
    if isinstance(labels, dict):
        labels = tuple(labels.values())
    return [f for part in labels for f in _factors(part)] if isinstance(labels, (tuple, list)) else []
