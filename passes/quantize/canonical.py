"""Before placement: operations that integer kernels know, in place of equal ones that they do not.

    mean(x, spatial axes)    ->  flatten(adaptive_avg_pool(x, 1), 1)
    hardswish(x)             ->  x * hardsigmoid(x)
    silu(x)                  ->  x * sigmoid(x)
    batch norm, rank 4       ->  depthwise 1 x 1 convolution     W[c] = gamma / sqrt(var + eps), b = beta - mean W

All are equal in real arithmetic. A depthwise weight of one number per channel is exact in int8: 127 times its scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ...compiler.ops import Call
from ...compiler.shapes import concrete, is_tensor, shape_of
from ..edit import Edit


def canonicalise(edit: Edit) -> None:
    """Rewrite in place."""
    for node in list(edit.graph.nodes):
        call = edit.call(node)
        if call is None:
            continue
        made: fx.Node | None = None
        with edit.graph.inserting_before(node):
            if call.key == "reduce" and call.title == "mean" and _over_space(call):
                made = _pooled(edit, call)
            elif call.key == "unary" and call.title.lower() in ("hardswish", "silu") and is_tensor(call.input):
                made = _gated(edit, call)
            elif call.key == "batch_norm" and call.module is not None and len(shape_of(call.node)) == 4:
                made = _depthwise(edit, call)
        if made is not None:
            edit.replace(node, made)


def _over_space(call: Call) -> bool:
    if not is_tensor(call.input) or call["dim"] is None:
        return False
    rank, dims = len(shape_of(call.input)), concrete(call["dim"])
    wanted = sorted(d % rank for d in ([dims] if isinstance(dims, int) else dims))
    return rank in (3, 4, 5) and wanted == list(range(2, rank))


def _pooled(edit: Edit, call: Call) -> fx.Node:
    pool = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}[len(shape_of(call.input))]
    pooled = _call(edit, call.node, pool, (call.input, 1))
    return pooled if call["keepdim"] else _call(edit, call.node, torch.flatten, (pooled, 1))


def _gated(edit: Edit, call: Call) -> fx.Node:
    gate: Any = F.hardsigmoid if call.title.lower() == "hardswish" else torch.sigmoid
    return _call(edit, call.node, torch.mul, (call.input, _call(edit, call.node, gate, (call.input,))))


def _depthwise(edit: Edit, call: Call) -> fx.Node | None:
    mean, var = call["running_mean"], call["running_var"]
    if mean is None or var is None or not is_tensor(call.input) or edit.is_shared(call):
        return None
    scale = torch.rsqrt(var.detach().double() + call["eps"])
    scale = scale if call["weight"] is None else scale * call["weight"].detach().double()
    shift = -mean.detach().double() * scale
    shift = shift if call["bias"] is None else shift + call["bias"].detach().double()
    count = len(scale)
    layer = nn.Conv2d(count, count, 1, groups=count, device=mean.device, dtype=mean.dtype)
    layer.weight = nn.Parameter(scale.reshape(-1, 1, 1, 1).to(mean.dtype))
    layer.bias = nn.Parameter(shift.to(mean.dtype))
    layer.train(edit.program.root.training)
    edit.set_layer(call.owner, layer)
    made = edit.graph.call_module(call.owner, (call.input,))
    return edit.settle(made, call.node)


def _call(edit: Edit, like: fx.Node, function: Any, arguments: tuple[Any, ...]) -> fx.Node:
    return edit.settle(edit.graph.call_function(function, arguments), like)
