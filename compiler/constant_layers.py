"""What convolutions and linear layers make of constant channels.

    y[o] = b[o] + sum over i of W[o, i] * x[i]

Row o is constant where every input that it reads (W[o, i] != 0) is constant, c[i], and looks constant to the kernel:

    y[o] = b[o] + sum over i, k of W[o, i, k] c[i]

At a border padded with zeros, and under the fewer taps that reach the border of a transposed convolution, only c[i] = 0
does. A row of zeros reads nothing: y[o] = b[o].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .constant_values import KnownValues, Value, along, rule
from .ops import Call
from .shapes import concrete, shape_of


@dataclass(frozen=True, eq=False)
class Reading:
    """A convolution or linear layer, and what it knows of its input."""

    call: Call
    axis: int
    """Of the channels, in the input and in the output."""
    channels: Value
    """The constant of every input channel, NaN where it is none: float64 [I]."""
    kernel: Tensor | None
    """The weight as [groups, O/g, I/g, taps], in the weight's own memory where it can be; None if it is not known."""
    borders: bool
    """Whether a constant input looks like another at the border, unless it is 0."""


def as_kernel(call: Call, weight: Tensor) -> Tensor:
    """Return a view of a weight as [groups, O/g, I/g, taps].

    Args:
        call: The layer: conv [g O/g, I/g, k...], conv_transpose [g I/g, O/g, k...] or linear [O, I].
        weight: Of the layer's shape, contiguous.
    """
    groups = 1 if call.key == "linear" else int(concrete(call["groups"]))
    rows, columns = weight.shape[:2]
    kernel = weight.reshape(groups, rows // groups, columns, -1)
    return kernel.transpose(1, 2) if call.key == "conv_transpose" else kernel


def has_borders(call: Call) -> bool:
    """Tell whether a constant input channel is not seen as constant at every position."""
    if call.key == "linear":
        return False
    if call.key == "conv_transpose":
        return True
    if getattr(call.module, "padding_mode", "zeros") != "zeros":
        return False
    padding = concrete(call["padding"])
    if isinstance(padding, str):
        kernel: Any = call["weight"].shape if isinstance(call["weight"], Tensor) else shape_of(call["weight"])
        return padding == "same" and any(size > 1 for size in kernel[2:])
    return any(padding if isinstance(padding, (tuple, list)) else [padding])


@rule("conv", "conv_transpose", "linear")
def layer(at: KnownValues, call: Call) -> Value | None:
    """Record what the layer knows of its input, and find the rows that read nothing else."""
    weight = _weight(at, call["weight"])
    rank = len(shape_of(call.node))
    taps = 0 if call.key == "linear" else _rank(call["weight"]) - 2
    axis = rank - 1 - taps
    channels = at.channels(call, axis)
    kernel = None if weight is None else as_kernel(call, weight)
    reading = at.readings[call.node] = Reading(call, axis, channels, kernel, has_borders(call))
    bias = np.zeros(shape_of(call.node)[axis]) if call["bias"] is None else at.tensor(call["bias"])
    if kernel is None or bias is None:
        return None
    found = _outputs(reading, kernel, bias)
    return None if found is None else along(found, axis, rank)


def _weight(at: KnownValues, weight: Any) -> Tensor | None:
    """Return the weight if it is known; integers that stand for numbers (a quantized weight) are left alone."""
    if isinstance(weight, Tensor):
        return weight.detach().cpu() if weight.is_floating_point() else None
    found = at.tensor(weight)
    return None if found is None else torch.from_numpy(found.copy())


def _rank(weight: Any) -> int:
    return weight.ndim if isinstance(weight, Tensor) else len(shape_of(weight))


def _outputs(reading: Reading, kernel: Tensor, bias: Value) -> Value | None:
    groups, rows, columns, _ = kernel.shape
    constants = reading.channels.reshape(groups, columns)
    seen = (constants == 0) | (~np.isnan(constants) & (not reading.borders))
    reads = (kernel != 0).any(-1).numpy()
    known = ~(reads & ~seen[:, None, :]).any(2)  # [groups, rows]
    if not known.any():
        return None
    constants = np.where(seen, constants, 0.0)
    total = np.zeros((groups, rows))
    used = constants.any(0)
    if used.any():
        taps = kernel[:, :, torch.from_numpy(used)].double().sum(-1).numpy()
        total = np.einsum("goi,gi->go", taps, constants[:, used])
    return np.where(known.ravel(), total.ravel() + bias, np.nan)
