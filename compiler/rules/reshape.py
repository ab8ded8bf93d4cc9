"""Moves that change the shape: view, reshape, flatten, permute, transpose, squeeze, unsqueeze, expand, repeat.

All of them run on the label arrays (``labels.reshape``, ``ChannelLabels.renamed``); the sizes they are given along
channel axes are declared as counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..labels import ChannelLabels, Reshaped, crowded, reshape
from ..ops import Call
from ..shapes import concrete
from .cells import INSIDE
from .elementwise import combine, connected
from .movement import count_along, move, reduce_constant
from .registry import Labels, RuleContext, rule


@rule("reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze")
def reshape_like(ctx: RuleContext, call: Call) -> Labels:
    """Any change of shape that keeps the order of elements."""
    before, after = ctx.shape(call.input), ctx.shape(call.node)
    ctx.pin(_single(ctx.labels(call.input), before, after), f"{call.title} removes an axis of one channel")
    inner = crowded(ctx.labels(call.input), before, after) if ctx.whole_cells else ()
    for factor in inner:
        ctx.pin(factor.atoms, INSIDE)

    def moved(labels: ChannelLabels) -> Reshaped:
        kept = _placed(labels, before, after).factors
        dropped = {f.axes for f in inner}
        return reshape(ChannelLabels(tuple(f for f in kept if f.axes not in dropped), labels.origin), before, after)

    ctx.pin(moved(ctx.labels(call.input)).lost, f"{call.title} merges axes of different channels")
    result = move(ctx, call, lambda labels: moved(labels).labels)
    if isinstance(result, ChannelLabels):
        counts = [count_along(result, axis) for axis in range(len(after))]
        if call.key == "reshape":
            ctx.count_argument(call, "shape", counts)
        elif call.key == "unflatten":
            dim = concrete(call["dim"]) % len(before)
            ctx.count_argument(call, "sizes", counts[dim : dim + len(concrete(call["sizes"]))])
        elif call.key == "reshape_as":
            _alike(ctx, call, result)
    return result


def _alike(ctx: RuleContext, call: Call, result: ChannelLabels) -> None:
    """Tie the channels of the result with those of the tensor whose shape it has to have."""
    other, sizes = ctx.labels(call["other"]), ctx.shape(call.node)
    for axes in connected([f.axes for x in (result, other) for f in x.factors]):
        combine(ctx, axes, [result, other], [sizes, sizes], call)


def _placed(labels: ChannelLabels, before: tuple[int, ...], after: tuple[int, ...]) -> ChannelLabels:
    """Drop factors on axes of size 1: a reshape has no place for them (their channel is pinned)."""
    if tuple(before) == tuple(after):
        return labels
    return ChannelLabels(tuple(f for f in labels.factors if all(before[a] > 1 for a in f.axes)), labels.origin)


def _single(labels: ChannelLabels, before: tuple[int, ...], after: tuple[int, ...]) -> Any:
    dropped = set(labels.factors) - set(_placed(labels, before, after).factors)
    return np.concatenate([f.atoms.ravel() for f in dropped]) if dropped else np.empty(0, dtype=np.int64)


@rule("permute", "transpose", "matrix_transpose", "movedim")
def permute(ctx: RuleContext, call: Call) -> Labels:
    """Rename the axes."""
    order = _order(ctx, call)
    return move(ctx, call, lambda labels: labels.renamed(order.index))


def _order(ctx: RuleContext, call: Call) -> list[int]:
    """Return, for each axis of the result, the axis of the input that it is."""
    rank = len(ctx.shape(call.input))
    order = list(range(rank))
    if call.key == "permute":
        return [d % rank for d in concrete(call["dims"])]
    if call.key in ("transpose", "matrix_transpose"):
        a, b = (0, rank - 1) if call.key == "matrix_transpose" else (concrete(call["dim0"]), concrete(call["dim1"]))
        order[a], order[b] = order[b], order[a]
        return order
    source, destination = concrete(call["source"]), concrete(call["destination"])
    sources = [s % rank for s in ([source] if isinstance(source, int) else source)]
    targets = [d % rank for d in ([destination] if isinstance(destination, int) else destination)]
    rest = iter(a for a in range(rank) if a not in sources)
    return [sources[targets.index(a)] if a in targets else next(rest) for a in range(rank)]


@rule("expand", "expand_as")
def expand(ctx: RuleContext, call: Call) -> Labels:
    """Broadcast axes of size 1; a single channel that is broadcast must stay."""
    before, after = ctx.shape(call.input), ctx.shape(call.node)
    shift = len(after) - len(before)
    labels = ctx.labels(call.input)
    for factor in labels.factors:
        if any(before[a] != after[a + shift] for a in factor.axes):
            ctx.pin(factor.atoms, "one channel is broadcast over many")

    def mover(labels: ChannelLabels) -> ChannelLabels:
        kept = tuple(f for f in labels.factors if all(before[a] == after[a + shift] for a in f.axes))
        return ChannelLabels(kept, labels.origin).renamed(lambda a: a + shift)

    result = move(ctx, call, mover)
    if call.key == "expand_as" and isinstance(result, ChannelLabels):
        new = {axis for axis, size in enumerate(after) if axis < shift or before[axis - shift] != size}
        # Copies of one value: they may go wherever those of the other tensor do.
        copies = [f for f in ctx.labels(call["other"]).factors if set(f.axes) <= new]
        result = ChannelLabels((*result.factors, *copies), result.origin)
        _alike(ctx, call, result)
    if call.key == "expand":
        ctx.count_argument(call, "sizes", [count_along(result, a) for a in range(len(after))])
    return result


@rule("repeat")
def repeat(ctx: RuleContext, call: Call) -> Labels:
    """Tile: along a channel axis every channel appears several times."""
    before, after = ctx.shape(call.input), ctx.shape(call.node)
    shift = len(after) - len(before)

    def mover(labels: ChannelLabels) -> ChannelLabels:
        labels = labels.renamed(lambda a: a + shift)
        for axis in range(shift, len(after)):
            size = before[axis - shift]
            if after[axis] != size:
                labels = labels.taken(axis, np.tile(np.arange(size), after[axis] // size))
        return reduce_constant(labels)

    return move(ctx, call, mover)


@rule("copy")
def copy(ctx: RuleContext, call: Call) -> Labels:
    """``contiguous``, ``clone``, ``detach``: the same positions."""
    return move(ctx, call, lambda labels: labels)


@rule("size", "shape", "rank")
def size(ctx: RuleContext, call: Call) -> Labels:
    """Numbers, not tensors; ``getattr`` of anything but sizes, results and transposes is unknown."""
    if call.key != "shape":
        return None
    found = ctx.env.get(call.input)
    if call["name"] in _RESULTS and isinstance(found, tuple):
        return found[_RESULTS.index(call["name"])]
    if call["name"] in _TRANSPOSED:
        rank = len(ctx.shape(call.input))
        swapped = range(rank - 1, -1, -1) if call["name"] == "T" else [*range(rank - 2), rank - 1, rank - 2]
        return move(ctx, call, lambda labels: labels.renamed(list(swapped).index))
    return ctx.unknown(call)


_RESULTS = ("values", "indices")
"""Names of the two results of ``max(dim)``."""
_TRANSPOSED = ("T", "mT")
