"""Constant rules of what acts on positions and of what joins tensors: pools, reductions, interpolation, cat, padding.

Averages, maxima and interpolations of a constant are that constant, where nothing else is mixed in: zeros counted in by
an average at the border, another value padded with.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .constant_values import KnownValues, Value, along, rule, uniform
from .ops import Call
from .shapes import concrete, is_tensor, shape_of, value_of


def _zero_or_unknown(value: Value) -> Value:
    return np.where(value == 0, value, np.nan)


def _pooled(at: KnownValues, call: Call) -> Value | None:
    value, rank = at.input(call), len(shape_of(call.input))
    if value is None:
        return None
    digits = [int(c) for c in call.title if c.isdigit()]
    spatial = rank - 2 if call.key == "interpolate" else digits[-1]
    return uniform(value, range(rank - spatial, rank))


def _first_of_several(call: Call, value: Value | None) -> Any:
    """Return the result for an operation that may give indices too."""
    return (value, None) if isinstance(value_of(call.node), tuple) else value


def _is_zero(size: Any) -> bool:
    size = concrete(size)
    return not any(size) if isinstance(size, (tuple, list)) else size == 0


@rule("adaptive_pool", "interpolate")
def resize(at: KnownValues, call: Call) -> Any:
    """Windows inside the input, weights that sum to 1."""
    return _first_of_several(call, _pooled(at, call))


@rule("max_pool")
def max_pool(at: KnownValues, call: Call) -> Any:
    """Padding counts as minus infinity; a dilated window may lie in nothing else."""
    value = _pooled(at, call)
    dilation = concrete(call["dilation"])
    dilated = any(d != 1 for d in (dilation if isinstance(dilation, (tuple, list)) else [dilation]))
    if dilated and not _is_zero(call["padding"]):
        return None
    return _first_of_several(call, value)


@rule("avg_pool")
def avg_pool(at: KnownValues, call: Call) -> Value | None:
    """An average of the constant, unless padded zeros are counted or the divisor is another."""
    value = _pooled(at, call)
    divisor = call.params.get("divisor_override", getattr(call.module, "divisor_override", None))
    counted = call["count_include_pad"] is not False and not _is_zero(call["padding"])
    return _zero_or_unknown(value) if value is not None and (counted or divisor is not None) else value


@rule("reduce")
def reduce(at: KnownValues, call: Call) -> Value | None:
    """``mean``, ``amax``, ``amin`` of a constant; a sum of zeros (how many there are follows the input's size)."""
    value, word = at.input(call), call.title
    if (
        value is None
        or word not in ("mean", "amax", "amin", "sum")
        or not {"input", "dim", "keepdim"} >= set(call.params)
    ):
        return None
    dim = concrete(call["dim"])
    dims = range(value.ndim) if dim is None or dim == () else [dim] if isinstance(dim, int) else dim
    axes = tuple({d % value.ndim for d in dims})
    value = uniform(value, axes)
    value = _zero_or_unknown(value) if word == "sum" else value
    return value if call["keepdim"] else value.squeeze(axes)


@rule("cat", "stack")
def join(at: KnownValues, call: Call) -> Value | None:
    """Values follow one another as their tensors do."""
    tensors = call["tensors"]
    if not isinstance(tensors, (list, tuple)) or not all(map(is_tensor, tensors)):
        return None
    rank = len(shape_of(call.node))
    axis = concrete(call["dim"]) % rank
    shapes = [shape_of(t) for t in tensors]
    if len({len(s) for s in shapes}) > 1:
        return None  # cat skips empty vectors
    values = [_or_unknown(at.of(t), len(s)) for t, s in zip(tensors, shapes, strict=True)]
    if call.key == "stack":
        shapes = [(*s[:axis], 1, *s[axis:]) for s in shapes]
        values = [np.expand_dims(v, axis) for v in values]
    sizes = np.broadcast_shapes(*((*v.shape[:axis], 1, *v.shape[axis + 1 :]) for v in values))
    wide = [
        np.broadcast_to(v, (*sizes[:axis], s[axis], *sizes[axis + 1 :])) for v, s in zip(values, shapes, strict=True)
    ]
    return np.concatenate(wide, axis)


def _or_unknown(value: Value | None, rank: int) -> Value:
    return np.full((1,) * rank, np.nan) if value is None else value


@rule("pad")
def pad(at: KnownValues, call: Call) -> Value | None:
    """In space, a constant stays one if it is padded with itself; along the channels, new constants join."""
    value, shape = at.input(call), shape_of(call.input)
    filled = call["value"] or 0.0
    if not isinstance(filled, int | float) or not isinstance(call["pad"], (tuple, list)):
        return None
    value = _or_unknown(value, len(shape))
    amounts = list(concrete(call["pad"]))
    for pair in range(len(amounts) // 2):
        axis, before, after = len(shape) - 1 - pair, amounts[2 * pair], amounts[2 * pair + 1]
        if (before, after) == (0, 0):
            continue
        if axis == 1 or value.shape[axis] > 1:
            if min(before, after) < 0 or call["mode"] != "constant":
                return None
            value = _widened(value, axis, shape[axis], (before, after), filled)
        elif call["mode"] == "constant":
            value = np.where(value == filled, value, np.nan)
    return value


def _widened(value: Value, axis: int, size: int, amounts: tuple[int, int], filled: float) -> Value:
    value = np.repeat(value, size, axis) if value.shape[axis] == 1 else value
    widths = [(amounts if a == axis else (0, 0)) for a in range(value.ndim)]
    return np.pad(value, widths, constant_values=filled)


@rule("pixel_shuffle")
def pixel_shuffle(at: KnownValues, call: Call) -> Value | None:
    """A channel is constant if the r^2 that make it are the same constant."""
    rank, r = len(shape_of(call.input)), concrete(call["upscale_factor"])
    cells = at.channels(call, rank - 3).reshape(-1, r * r)
    return along(np.where((cells == cells[:, :1]).all(1), cells[:, 0], np.nan), rank - 3, rank)


@rule("pixel_unshuffle")
def pixel_unshuffle(at: KnownValues, call: Call) -> Value | None:
    """Every channel becomes r^2."""
    rank, r = len(shape_of(call.input)), concrete(call["downscale_factor"])
    return along(np.repeat(at.channels(call, rank - 3), r * r), rank - 3, rank)
