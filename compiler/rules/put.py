"""Writing into a part of a tensor."""

from __future__ import annotations

from functools import partial
from operator import add
from typing import Any

import numpy as np

from ..dependency import KEEP
from ..labels import ChannelLabels
from ..ops import Call
from ..shapes import concrete, is_tensor
from .elementwise import combine, connected
from .movement import cells_along
from .registry import Labels, RuleContext, rule


@rule("put")
def put(ctx: RuleContext, call: Call) -> Labels:
    """Write a tensor or a number into slices of another: what is written over goes with what is written."""
    labels, shape = ctx.labels(call.input), ctx.shape(call.input)
    index = call["index"] if isinstance(call["index"], tuple) else (call["index"],)
    index = (*index, *[slice(None)] * (len(shape) - len(index)))
    if len(index) > len(shape) or not all(isinstance(concrete(entry), slice) for entry in index):
        return ctx.unknown(call, "written to by a computed index")
    template: list[Any] = [KEEP] * len(index)
    part = labels
    for axis, entry in enumerate(index):
        start, stop, step = concrete(entry).indices(shape[axis])
        positions = np.arange(start, stop, step)
        factor = labels.factor_at(axis)
        if factor is None or len(positions) == shape[axis]:
            continue
        if step != 1 or len(factor.axes) > 1:
            ctx.pin(factor.atoms, "written to at some of its positions")
        else:
            low, high = cells_along(labels, axis, np.arange(start)), cells_along(labels, axis, np.arange(stop))
            template[axis] = slice(low if start else KEEP, high if stop < shape[axis] else KEEP)
        part = part.taken(axis, positions)
    if any(t is not KEEP for t in template):
        ctx.count_argument(call, "index", tuple(template))
    if is_tensor(call["value"]):
        _tie(ctx, call, part, [len(range(n)[concrete(e)]) for n, e in zip(shape, index, strict=True)])
    return ctx.regular(labels, "written to")


def _tie(ctx: RuleContext, call: Call, part: ChannelLabels, sizes: list[int]) -> None:
    """Tie a part of a tensor with what is written over it, under broadcasting."""
    shift = len(sizes) - len(ctx.shape(call["value"]))
    value = ctx.labels(call["value"]).renamed(partial(add, shift))
    shapes = [sizes, [1] * shift + list(ctx.shape(call["value"]))]
    for axes in connected([f.axes for x in (part, value) for f in x.factors]):
        combine(ctx, axes, [part, value], shapes, call)
