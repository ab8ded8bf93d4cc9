"""Moves that pick positions: split, chunk, slicing, indexing, roll, flip, channel shuffle.

Slices and pieces stay slices after pruning, with their bounds counted anew. Picks in another order (a list, a stride, a
roll) become a gather of the kept positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from ..dependency import KEEP, Gather
from ..labels import Atoms, ChannelLabels
from ..ops import Call
from ..shapes import concrete, is_tensor, value_of
from .movement import cells_along, element, move, tie_rows
from .registry import Labels, RuleContext, rule


@rule("split", "chunk", "tensor_split")
def split(ctx: RuleContext, call: Call) -> Labels:
    """Pieces along ``dim``, each with its own channels."""
    shape, labels = ctx.shape(call.input), ctx.labels(call.input)
    axis = concrete(call["dim"]) % len(shape)
    sizes = [piece.shape[axis] for piece in value_of(call.node)]
    stops = np.cumsum(sizes)
    pieces = [np.arange(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]
    if labels.factor_at(axis) is not None:
        _no_ragged_pieces(ctx, call, labels, axis)
        counts = [cells_along(labels, axis, p) for p in pieces]
        ctx.count_argument(call, "split_size_or_sections", counts, key="split")
    return move(ctx, call, lambda x: tuple(x.taken(axis, p) for p in pieces))


def _no_ragged_pieces(ctx: RuleContext, call: Call, labels: ChannelLabels, axis: int) -> None:
    """Equal counts in whole rows do not make equal counts in parts of them: tie, unless a gather can do it."""
    factor = labels.factor_at(axis)
    if factor is not None and len(factor.axes) > 1 and call.input not in ctx.chains:
        tie_rows(ctx, factor, "a part of balanced rows")


@rule("unbind")
def unbind(ctx: RuleContext, call: Call) -> Labels:
    """All positions along ``dim``, one by one."""
    shape = ctx.shape(call.input)
    axis = concrete(call["dim"]) % len(shape)
    _pin_if_alone(ctx, call, axis, np.arange(shape[axis]))
    return move(ctx, call, lambda x: tuple(_pick_one(x, axis, i) for i in range(shape[axis])))


@rule("select")
def select(ctx: RuleContext, call: Call) -> Labels:
    """One position along ``dim``."""
    axis = concrete(call["dim"]) % len(ctx.shape(call.input))
    index = concrete(call["index"]) % ctx.shape(call.input)[axis]
    _count_index(ctx, call, "index", axis, index)
    return move(ctx, call, lambda x: _pick_one(x, axis, index))


def _pin_if_alone(ctx: RuleContext, call: Call, axis: int, positions: Atoms) -> None:
    factor = ctx.labels(call.input).factor_at(axis)
    if factor is not None:
        picked = factor.atoms.take(positions, axis=factor.axes.index(axis))
        if len(factor.axes) == 1:
            ctx.pin(picked, "a channel is picked by its index")


def _count_index(ctx: RuleContext, call: Call, name: str, axis: int, index: int) -> None:
    labels = ctx.labels(call.input)
    if labels.factor_at(axis) is not None:
        _pin_if_alone(ctx, call, axis, np.array([index]))
        ctx.count_argument(call, name, cells_along(labels, axis, np.arange(index)))


def _pick_one(labels: ChannelLabels, axis: int, index: int) -> ChannelLabels:
    taken = labels.taken(axis, np.array([index]))
    kept = []
    for factor in taken.factors:
        if axis not in factor.axes:
            kept.append(factor)
        elif len(factor.axes) > 1:
            position = factor.axes.index(axis)
            axes = tuple(a for a in factor.axes if a != axis)
            kept.append(type(factor)(axes, factor.atoms.squeeze(position)))
    return ChannelLabels(tuple(kept), labels.origin).renamed(lambda a: a - (a > axis))


@rule("narrow")
def narrow(ctx: RuleContext, call: Call) -> Labels:
    """A range along ``dim``."""
    shape, labels = ctx.shape(call.input), ctx.labels(call.input)
    axis = concrete(call["dim"]) % len(shape)
    start, length = concrete(call["start"]) % shape[axis], concrete(call["length"])
    if labels.factor_at(axis) is not None:
        _no_ragged_pieces(ctx, call, labels, axis)
        ctx.count_argument(call, "start", cells_along(labels, axis, np.arange(start)))
        ctx.count_argument(call, "length", cells_along(labels, axis, np.arange(start, start + length)))
    return move(ctx, call, lambda x: x.taken(axis, np.arange(start, start + length)))


@rule("index_select")
def index_select(ctx: RuleContext, call: Call) -> Labels:
    """Positions along ``dim`` listed in a tensor; known only if that is a constant of the model."""
    axis = concrete(call["dim"]) % len(ctx.shape(call.input))
    positions = _constant(ctx, call["index"])
    if positions is None:
        labels = ctx.labels(call.input)
        ctx.pin_all(ChannelLabels(tuple(f for f in labels.factors if axis in f.axes)), "indexed by a computed tensor")
        return ChannelLabels(labels.without(axis), f"{call.title} ({ctx.node})")
    return gather(ctx, call, axis, positions)


def _constant(ctx: RuleContext, index: Any) -> Atoms | None:
    if isinstance(index, fx.Node) and index.op == "get_attr":
        index = ctx.program.attribute(str(index.target))
    if isinstance(index, torch.Tensor) and not index.is_floating_point() and index.dtype != torch.bool:
        return index.detach().cpu().numpy().astype(np.int64).ravel()
    if isinstance(index, (list, tuple)) and all(isinstance(i, int) for i in index):
        return np.array(index, dtype=np.int64)
    return None


def gather(ctx: RuleContext, call: Call, axis: int, positions: Atoms) -> Labels:
    """Pick ``positions`` along ``axis``; after pruning, the kept ones from where they then are."""
    positions = positions % ctx.shape(call.input)[axis]
    factor = ctx.labels(call.input).factor_at(axis)
    if factor is not None and len(factor.axes) > 1:
        tie_rows(ctx, factor, "a gather from balanced rows")
    if factor is not None:
        ctx.gathers[call.node] = Gather(call.input, axis, positions, ())
    return ctx.labels(call.input).taken(axis, positions)


@rule("repeat_interleave")
def repeat_interleave(ctx: RuleContext, call: Call) -> Labels:
    """Every position along ``dim`` several times in a row."""
    repeats: Any = concrete(call["repeats"])
    if call["dim"] is None or not isinstance(repeats, int):
        return ctx.unknown(call, "repeated by computed counts")
    axis = concrete(call["dim"]) % len(ctx.shape(call.input))
    if ctx.labels(call.input).factor_at(axis) is None:
        return ctx.labels(call.input)
    return gather(ctx, call, axis, np.repeat(np.arange(ctx.shape(call.input)[axis]), repeats))


@rule("roll")
def roll(ctx: RuleContext, call: Call) -> Labels:
    """Rotate; along a channel axis this is a gather."""
    shape = ctx.shape(call.input)
    shifts, dims = concrete(call["shifts"]), concrete(call["dims"])
    if dims is None or dims == ():
        return ctx.unknown(call, "roll of a flattened tensor")
    pairs = [(shifts, dims)] if isinstance(dims, int) else list(zip(shifts, dims, strict=True))
    moved = [(d % len(shape), s) for s, d in pairs if ctx.labels(call.input).factor_at(d % len(shape)) is not None]
    if not moved:
        return ctx.labels(call.input)
    if len(pairs) > 1:
        return ctx.unknown(call, "roll along channels and other axes at once")
    axis, shift = moved[0]
    return gather(ctx, call, axis, np.roll(np.arange(shape[axis]), shift))


@rule("flip")
def flip(ctx: RuleContext, call: Call) -> Labels:
    """Reverse: what is kept stays reversed."""
    shape = ctx.shape(call.input)
    axes = [d % len(shape) for d in concrete(call["dims"])]
    labels = ctx.labels(call.input)
    for axis in axes:
        factor = labels.factor_at(axis)
        if factor is not None and len(factor.axes) > 1:
            tie_rows(ctx, factor, "balanced rows are reversed")
        labels = labels.taken(axis, np.arange(shape[axis])[::-1])
    return labels


@rule("channel_shuffle")
def channel_shuffle(ctx: RuleContext, call: Call) -> Labels:
    """[N, g * k, ...] -> [N, k * g, ...]."""
    size = ctx.shape(call.input)[1]
    return gather(ctx, call, 1, np.arange(size).reshape(concrete(call["groups"]), -1).T.ravel())


@rule("getitem")
def getitem(ctx: RuleContext, call: Call) -> Labels:
    """Index a tensor, or pick from a tuple or dict."""
    if not is_tensor(call.input):
        found = ctx.env.get(call.input) if isinstance(call.input, fx.Node) else None
        if isinstance(found, (tuple, dict)):
            picked: Any = found[concrete(call["index"])]
            return element(ctx, call.node, call.input, picked)
        return None
    index = call["index"] if isinstance(call["index"], tuple) else (call["index"],)
    rows = _picked_rows(ctx, index)
    if rows is not None:
        return _pick_rows(ctx, call, rows, index[rows])
    entries = _entries(index, len(ctx.shape(call.input)))
    if entries is None:
        return ctx.unknown(call, "indexed by a computed tensor")
    return _index(ctx, call, entries)


def _picked_rows(ctx: RuleContext, index: tuple[Any, ...]) -> int | None:
    """Return the axis that one index tensor picks from, where all else is taken whole and the tensor is no constant."""
    tensors = [i for i, entry in enumerate(index) if is_tensor(entry)]
    if len(tensors) != 1 or any(e != slice(None) for i, e in enumerate(index) if i not in tensors):
        return None
    known = _constant(ctx, index[tensors[0]]) is not None and len(ctx.shape(index[tensors[0]])) == 1
    return None if known or value_of(index[tensors[0]]).dtype == torch.bool else tensors[0]


def _pick_rows(ctx: RuleContext, call: Call, axis: int, index: fx.Node) -> Labels:
    """``x[:, index]``: what is picked from stays; the index's axes take the place of one, and channels go along."""
    labels, added = ctx.labels(call.input), len(ctx.shape(index)) - 1
    if (rows := labels.factor_at(axis)) is not None:
        ctx.pin(rows.atoms, "picked by an index")
    kept = ChannelLabels(labels.without(axis), labels.origin)
    return kept.renamed(lambda a: a + added * (a > axis))


def _entries(index: tuple[Any, ...], rank: int) -> list[Any] | None:
    """Spell out an index: one entry per axis of the tensor, None where an axis is added. None if it cannot be known."""
    plain = [slice(None) if i is Ellipsis else i for i in index]
    if Ellipsis in [i for i in index if not isinstance(i, fx.Node)]:
        at = next(k for k, i in enumerate(index) if i is Ellipsis)
        missing = rank - sum(i is not None for i in index) + 1
        plain = [*index[:at], *[slice(None)] * missing, *index[at + 1 :]]
    plain += [slice(None)] * (rank - sum(i is not None for i in plain))
    for entry in plain:
        if not (entry is None or isinstance(entry, (int, slice, list, torch.Tensor)) or _is_known_node(entry)):
            return None
        if isinstance(entry, bool):
            return None
    return plain


def _is_known_node(entry: Any) -> bool:
    return isinstance(entry, fx.Node) and (isinstance(value_of(entry), int) or entry.op == "get_attr")


def _index(ctx: RuleContext, call: Call, entries: list[Any]) -> Labels:
    shape, labels = ctx.shape(call.input), ctx.labels(call.input)
    template: list[Any] = [KEEP] * len(entries)
    axis = -1
    for place, entry in enumerate(entries):
        axis += entry is not None
        if entry is None or labels.factor_at(axis) is None or entry == slice(None):
            continue
        if isinstance(entry, slice):
            start, stop, step = concrete(entry).indices(shape[axis])
            if step != 1:
                return _gather_index(ctx, call, entries, axis, np.arange(start, stop, step))
            _no_ragged_pieces(ctx, call, labels, axis)
            low, high = cells_along(labels, axis, np.arange(start)), cells_along(labels, axis, np.arange(stop))
            template[place] = slice(low if start else KEEP, high if stop < shape[axis] else KEEP)
        elif isinstance(value := concrete(entry), int):
            _pin_if_alone(ctx, call, axis, np.array([value % shape[axis]]))
            template[place] = cells_along(labels, axis, np.arange(value % shape[axis]))
        else:
            positions = _constant(ctx, entry)
            if positions is None:
                return ctx.unknown(call, "indexed by a computed tensor")
            return _gather_index(ctx, call, entries, axis, positions)
    if any(t is not KEEP for t in template):
        ctx.count_argument(call, "index", tuple(template))
    return move(ctx, call, lambda x: _indexed(x, entries, shape))


def _gather_index(ctx: RuleContext, call: Call, entries: list[Any], axis: int, positions: Atoms) -> Labels:
    others = [e for i, e in enumerate(e for e in entries if e is not None) if i != axis]
    if None in entries or any(e != slice(None) for e in others):
        return ctx.unknown(call, "channels are picked together with other positions")
    return gather(ctx, call, axis, positions)


def _indexed(labels: ChannelLabels, entries: list[Any], shape: tuple[int, ...]) -> ChannelLabels:
    """Apply slices, integers and new axes from the last axis to the first, so that earlier axes keep their number."""
    axis = len(shape)
    result = labels
    for entry in reversed(entries):
        if entry is None:
            at = axis
            result = result.renamed(lambda a, at=at: a + (a >= at))
            continue
        axis -= 1
        if isinstance(entry, slice):
            picked = np.arange(shape[axis])[concrete(entry)]
            if len(picked) != shape[axis]:
                result = result.taken(axis, picked)
        elif isinstance(value := concrete(entry), int):
            result = _pick_one(result, axis, value % shape[axis])
    return result
