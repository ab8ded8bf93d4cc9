"""Operations that put tensors side by side: cat, stack, and padding (which joins zero channels).

Along the joined axis channels follow one another; along every other axis the operands lie over each other, so their
channels are tied there (that is how a class token is tied to the trunk it joins).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dependency import KEEP, Count
from ..labels import ChannelLabels, Factor, concatenate
from ..ops import Call
from ..shapes import concrete, value_of
from .elementwise import combine, connected
from .registry import Labels, RuleContext, rule


@rule("cat")
def cat(ctx: RuleContext, call: Call) -> Labels:
    """Join along ``dim``."""
    tensors = call["tensors"]
    if isinstance(tensors, (list, tuple)):
        labels, shapes = [ctx.labels(t) for t in tensors], [ctx.shape(t) for t in tensors]
    elif isinstance(found := ctx.env.get(tensors), tuple):  # the pieces of a split, as they come
        labels, shapes = list(found), [value.shape for value in value_of(tensors)]
    else:
        return ctx.unknown(call)
    return _join(ctx, call, labels, shapes, concrete(call["dim"]) % len(shapes[0]))


@rule("stack")
def stack(ctx: RuleContext, call: Call) -> Labels:
    """Join along a new axis: the operands lie over each other along all the old ones."""
    tensors = call["tensors"]
    if not isinstance(tensors, (list, tuple)):
        return ctx.unknown(call)
    rank = len(ctx.shape(tensors[0]))
    axis = concrete(call["dim"]) % (rank + 1)
    shapes = [(*ctx.shape(t)[:axis], 1, *ctx.shape(t)[axis:]) for t in tensors]
    labels = [ctx.labels(t).renamed(lambda a: a + (a >= axis)) for t in tensors]
    return _join(ctx, call, labels, shapes, axis)


def _join(
    ctx: RuleContext, call: Call, labels: list[ChannelLabels], shapes: list[tuple[int, ...]], axis: int
) -> ChannelLabels:
    # torch skips empty one-dimensional operands of cat
    operands = [(ctx.regular(x, f"{call.title} needs full rows"), s) for x, s in zip(labels, shapes, strict=True)]
    factors: list[Factor] = []
    joined = [x.factor_at(axis) for x, _ in operands]
    if any(f is not None for f in joined):
        factors.append(_joined_factor(ctx, joined, operands, axis))
    used = set(factors[0].axes) if factors else set[int]()
    beside = [
        ChannelLabels(tuple(f for f in x.factors if axis not in f.axes and not used & {*f.axes}), x.origin)
        for x, _ in operands
    ]
    for axes in connected([f.axes for x in beside for f in x.factors]):
        lying_over = combine(ctx, axes, beside, [s for _, s in operands], call)
        if lying_over is not None:
            factors.append(lying_over)
    return ChannelLabels(tuple(factors), next((x.origin for x, _ in operands if x.origin), ""))


def _joined_factor(
    ctx: RuleContext,
    joined: list[Factor | None],
    operands: list[tuple[ChannelLabels, tuple[int, ...]]],
    axis: int,
) -> Factor:
    axes = max((f.axes for f in joined if f is not None), key=len)
    parts: list[Any] = []
    for factor, (labels, shape) in zip(joined, operands, strict=True):
        sizes = [shape[a] for a in axes]
        if factor is not None and factor.axes == axes:
            parts.append(factor.atoms)
        else:
            ctx.pin_all(labels, "joined with another arrangement of channels")
            origin = labels.origin or "a joined tensor"
            parts.append(ctx.fixed(int(np.prod(sizes)), f"{origin} carries no removable channels").reshape(sizes))
    if len(axes) > 1:
        return Factor(axes, concatenate(parts, axes.index(axis)))
    return Factor(axes, concatenate(parts, 0))


@rule("pad")
def pad(ctx: RuleContext, call: Call) -> Labels:
    """Pairs from the last axis on; constant padding of a channel axis makes new channels, which may go again."""
    shape, labels = ctx.shape(call.input), ctx.labels(call.input)
    amounts = list(concrete(call["pad"]))
    template: list[Any] = [KEEP] * len(amounts)
    for pair in range(len(amounts) // 2):
        axis, before, after = len(shape) - 1 - pair, amounts[2 * pair], amounts[2 * pair + 1]
        factor = labels.factor_at(axis)
        if factor is None or (before, after) == (0, 0):
            continue
        if min(before, after) < 0 or call["mode"] != "constant" or len(factor.axes) > 1:
            ctx.pin(factor.atoms, f"{call['mode']} padding of a channel axis")
            labels = ChannelLabels(labels.without(axis), f"padding ({ctx.node})")
            continue
        front, back = ctx.fresh(before), ctx.fresh(after)
        template[2 * pair], template[2 * pair + 1] = Count(front[:, None]), Count(back[:, None])
        widened = Factor((axis,), np.concatenate([front, factor.atoms, back]))
        labels = ChannelLabels((*labels.without(axis), widened), labels.origin)
    if any(t is not KEEP for t in template):
        ctx.count_argument(call, "pad", template)
    return labels
