"""Elementwise operations: what stands side by side lives and dies together.

Operands are aligned as broadcasting aligns them. Where two of them vary along an axis their channels are tied; an axis
of size 1 that is broadcast aligns nothing, so whatever single channel stands there has to stay; an operand that is
fixed along a labelled axis pins the channels of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import add
from typing import Any

import numpy as np

from ..labels import ChannelLabels, Factor
from ..ops import Call
from ..shapes import concrete, is_tensor
from .cells import may_be_cells, meet
from .registry import RuleContext, rule


@rule("unary")
def unary(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Activations, dropout, casts: the same channels. Bounds (clamp) may be tensors too."""
    more = _more_tensors(call)
    if more:
        return align(ctx, call, [call.input, *more])
    return ctx.regular(ctx.labels(call.input), "an elementwise operation needs full rows")


@rule("create_like")
def create_like(ctx: RuleContext, call: Call) -> ChannelLabels:
    """``x.new_zeros(...)`` takes nothing but the type of x."""
    return ChannelLabels(origin=f"{call.title} ({ctx.node})")


@rule("binary")
def binary(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Add, multiply, compare ... two tensors or a tensor and a number."""
    return align(ctx, call, [call.input, call["other"], *_more_tensors(call)])


def _more_tensors(call: Call) -> list[Any]:
    """Return tensors that the signature does not name: bounds of clamp, the weight of lerp."""
    named = [call.params[name] for name in ("input", "other") if name in call.params]
    given = [*call.node.args, *call.node.kwargs.values()]
    return [] if call.title in ("to", "type_as") else [a for a in given if is_tensor(a) and a not in named]


@rule("where")
def where(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Choose between two tensors by a third."""
    return align(ctx, call, [call["condition"], call.input, call["other"]])


@rule("softmax")
def softmax(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Each value depends on all along ``dim``: those need one label, the others keep theirs."""
    labels, rank = ctx.labels(call.input), len(ctx.shape(call.input))
    if call["dim"] is None:
        return ctx.unknown(call, "softmax without a dimension")
    factor = labels.factor_at(concrete(call["dim"]) % rank)
    if factor is not None:
        ctx.collapse(factor, concrete(call["dim"]) % rank, "softmax mixes the channels along this axis")
    return ctx.regular(labels, "softmax needs full rows")


@rule("glu")
def glu(ctx: RuleContext, call: Call) -> ChannelLabels:
    """A * sigmoid(b) for the two halves a, b of axis ``dim``: the halves are tied."""
    labels, shape = ctx.labels(call.input), ctx.shape(call.input)
    axis = concrete(call["dim"]) % len(shape)
    factor = labels.factor_at(axis)
    if factor is None:
        return labels
    half = np.arange(shape[axis] // 2)
    first, second = labels.taken(axis, half), labels.taken(axis, half + len(half))
    for a, b in zip(first.factors, second.factors, strict=True):
        ctx.tie(a.atoms, b.atoms, "the two halves of a gated linear unit")
    return ctx.regular(first, "a gated linear unit needs full rows")


def align(ctx: RuleContext, call: Call, operands: Sequence[Any]) -> ChannelLabels:
    """Tie the labels of operands under broadcasting and return those of the result."""
    tensors = [t for t in operands if is_tensor(t)]
    if len(tensors) == 1:
        return ctx.regular(ctx.labels(tensors[0]), "an elementwise operation needs full rows")
    return lay_over(ctx, call, [ctx.labels(t) for t in tensors], [ctx.shape(t) for t in tensors])


def lay_over(
    ctx: RuleContext, call: Call, labels: Sequence[ChannelLabels], sizes: Sequence[tuple[int, ...]]
) -> ChannelLabels:
    """Tie labels of tensors of some sizes under broadcasting and return those of the result."""
    rank = max(map(len, sizes))
    shapes = [(1,) * (rank - len(s)) + s for s in sizes]
    shifted = [x.renamed(partial(add, rank - len(s))) for x, s in zip(labels, sizes, strict=True)]
    result = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    shifted = [_pin_broadcast(ctx, x, s, result) for x, s in zip(shifted, shapes, strict=True)]
    factors: list[Factor] = []
    for axes in connected([f.axes for x in shifted for f in x.factors]):
        factor = combine(ctx, axes, shifted, shapes, call)
        if factor is not None:
            factors.append(factor)
    origin = next((x.origin for x in shifted if not x.factors and x.origin), "")
    return ctx.regular(ChannelLabels(tuple(factors), origin), "an elementwise operation needs full rows")


def _pin_broadcast(
    ctx: RuleContext, labels: ChannelLabels, shape: Sequence[int], result: Sequence[int]
) -> ChannelLabels:
    for axis, (own, full) in enumerate(zip(shape, result, strict=True)):
        factor = labels.factor_at(axis) if own == 1 < full else None
        if factor is not None:
            ctx.pin(factor.atoms, "one channel is broadcast over many")
            labels = ChannelLabels(labels.without(axis), labels.origin)
    return labels


def connected(sets: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Merge axis sets that overlap."""
    merged: list[set[int]] = []
    for axes in sets:
        overlapping = [m for m in merged if m & set(axes)]
        merged = [m for m in merged if not m & set(axes)] + [set(axes).union(*overlapping)]
    return [tuple(sorted(m)) for m in merged]


def combine(
    ctx: RuleContext,
    axes: tuple[int, ...],
    operands: Sequence[ChannelLabels],
    shapes: Sequence[Sequence[int]],
    call: Call,
) -> Factor | None:
    """Tie the operands over one connected set of axes; ``None`` if the channels there cannot be removed."""
    if rows := _cell_axes(ctx, axes, operands, shapes):
        factors = [f for labels in operands for f in labels.factors if set(f.axes) & set(axes)]
        return meet(ctx, factors, rows, f"{call.title} of aligned cells", assumed=True)
    full: list[Factor] = []
    partial: list[Factor] = []
    fixed_by = ""
    for labels, shape in zip(operands, shapes, strict=True):
        mine = [f for f in labels.factors if set(f.axes) & set(axes)]
        if len(mine) > 1 or (not mine and any(shape[a] > 1 for a in axes)):
            fixed_by = labels.origin or "an operand without channels along this axis"
            partial += mine
        elif mine:
            (full if mine[0].axes == axes else partial).append(mine[0])
    if not full or fixed_by:
        for factor in [*full, *partial]:
            ctx.pin(factor.atoms, f"combined by {call.title} with {fixed_by or 'another arrangement of channels'}")
        return None
    for factor in partial:
        if factor.axes[-1] == axes[-1]:  # the same channels in every row
            kept = [n if a in factor.axes else 1 for a, n in zip(axes, full[0].atoms.shape, strict=True)]
            spread = np.broadcast_to(factor.atoms.reshape(kept), full[0].atoms.shape)
            ctx.tie(full[0].atoms, spread, f"{call.title} of rows with the same channels")
        else:
            ctx.pin(
                np.concatenate([factor.atoms.ravel(), full[0].atoms.ravel()]),
                "one value serves a whole row of channels",
            )
    for other in full[1:]:
        ctx.tie(full[0].atoms, other.atoms, f"{call.title} of aligned channels")
    return full[0]


def _cell_axes(
    ctx: RuleContext, axes: tuple[int, ...], operands: Sequence[ChannelLabels], shapes: Sequence[Sequence[int]]
) -> list[int]:
    """Return the axes of cells that may go as wholes; none where all operands have their channels in one arrangement.

    Along these axes no operand is fixed. Within the cells some may be, or be the same for all of them.
    """
    if not may_be_cells(ctx):
        return []
    widest = max((f.axes for x in operands for f in x.factors if set(f.axes) & set(axes)), key=len)
    alike = True
    fixed = set[int]()
    for labels, shape in zip(operands, shapes, strict=True):
        mine = [f.axes for f in labels.factors if set(f.axes) & set(axes)]
        present = {a for a in axes if shape[a] > 1}
        fixed |= present.difference(*mine)
        alike &= mine == [widest] or not (mine or present)
    return [] if alike else [a for a in widest[:-1] if a not in fixed]
