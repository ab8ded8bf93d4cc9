"""Writing the decision into the graph.

    t                       ->   dequantize(quantize(t, s, z), s, z)       in all readers of a quantized tensor
    conv, linear            ->   the same with an int8 weight
    relu, relu6 ... -> q    ->   q, where the clamp of q does what the operation does
    hardsigmoid(x)          ->   dequantize(q_x, s / 6, z) + 0.5, quantized to [0, 1]

The last: hardsigmoid(x) = clamp(x / 6 + 1/2, 0, 1). Dividing by six is reading the same integers with another scale,
and the clamp is the saturation of the result; what is left is an addition, for which engines have an integer kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import fx

from ...compiler.functional import dequantize, fake_quantize, quantize
from ...compiler.ops import Call
from ...compiler.shapes import concrete
from ..edit import Edit
from .ranges import Affine


def insert(edit: Edit, ranges: Mapping[fx.Node, Affine]) -> None:
    """Quantize tensors, in graph order."""
    integers: dict[fx.Node, tuple[fx.Node, Affine]] = {}
    for node, affine in ranges.items():
        call = edit.call(node)
        source = node
        if call is not None and call.title.lower() == "hardsigmoid" and (found := _behind(call.input, integers)):
            source = _hard_sigmoid(edit, node, *found)
        elif call is not None and saturates(call, affine) and isinstance(call.input, fx.Node):
            source = call.input
        with edit.graph.inserting_after(node if source is node or source < node else source):
            q = edit.graph.call_function(quantize, (source, affine.scale, affine.zero_point, affine.dtype))
        with edit.graph.inserting_after(q):
            real = edit.graph.call_function(dequantize, (q, affine.scale, affine.zero_point))
        node.replace_all_uses_with(real, lambda user, q=q: user is not q)
        for made in (q, real):
            edit.settle(made, node)
        integers[real] = (q, affine)


def insert_fake(edit: Edit, ranges: Mapping[fx.Node, Affine]) -> None:
    """Let the readers of every tensor read what its integers would stand for, with gradients."""
    for node, affine in ranges.items():
        with edit.graph.inserting_after(node):
            made = edit.graph.call_function(fake_quantize, (node, affine.scale, affine.zero_point, affine.dtype))
        node.replace_all_uses_with(made, lambda user, made=made: user is not made)
        edit.settle(made, node)


def saturates(call: Call, affine: Affine) -> bool:
    """Tell whether quantizing does what a clipping operation does: its bounds are the ends of the integer range."""
    bounds = clipping_bounds(call)
    if bounds is None:
        return False
    limits = torch.iinfo(affine.dtype)

    def integer(value: float) -> float:
        return float(np.round(np.float32(value) / np.float32(affine.scale))) + affine.zero_point

    low, high = bounds
    return (low == -math.inf or integer(low) <= limits.min) and (high == math.inf or integer(high) >= limits.max)


def clipping_bounds(call: Call) -> tuple[float, float] | None:
    """Return what an operation clips to, ``None`` if it is not a clipping one."""
    title = call.title.rstrip("_").lower()
    if title == "relu":
        return 0.0, math.inf
    if title == "relu6":
        return 0.0, 6.0
    if title not in ("hardtanh", "clamp", "clip", "clamp_min"):
        return None
    module, node = call.module, call.node
    if module is not None:
        return float(getattr(module, "min_val", -1.0)), float(getattr(module, "max_val", 1.0))
    names = {"hardtanh": ("min_val", "max_val"), "clamp_min": ("min", "max")}.get(title, ("min", "max"))
    defaults = (-1.0, 1.0) if title == "hardtanh" else (None, None)
    values = [
        concrete(node.args[i + 1]) if len(node.args) > i + 1 else node.kwargs.get(name, default)
        for i, (name, default) in enumerate(zip(names, defaults, strict=True))
    ]
    if any(v is not None and not isinstance(v, (int, float)) for v in values):
        return None
    low, high = values
    return (
        -math.inf if low is None else float(low),  # pyright: ignore[reportArgumentType]
        math.inf if high is None else float(high),  # pyright: ignore[reportArgumentType]
    )


def _behind(node: object, integers: Mapping[fx.Node, tuple[fx.Node, Affine]]) -> tuple[fx.Node, Affine] | None:
    return integers.get(node) if isinstance(node, fx.Node) else None


def _hard_sigmoid(edit: Edit, node: fx.Node, q: fx.Node, affine: Affine) -> fx.Node:
    sixth = float(np.float32(affine.scale / 6))
    with edit.graph.inserting_before(node):
        x = edit.graph.call_function(dequantize, (q, sixth, affine.zero_point))
        total = edit.graph.call_function(torch.add, (x, 0.5))
    edit.settle(x, node)
    return edit.settle(total, node)
