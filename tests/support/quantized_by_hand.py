"""Quantized programs made by hand: weights rounded per channel, every tensor quantized, ranges from one batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from secateur.compiler.capture import trace
from secateur.compiler.functional import dequantize, quantize
from secateur.compiler.ops import normalise
from secateur.compiler.program import Program, place, referenced_tree
from secateur.compiler.quantized import QUANTIZED


class Mixed(nn.Module):
    """Convolutions (plain, depthwise), a shortcut, a branch that is concatenated, pools, a gate and two linears."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.point = nn.Conv2d(width, width, 1, bias=False)
        self.branch = nn.Conv2d(width, width, 3, padding=1)
        self.squeeze = nn.Conv2d(2 * width, 2 * width, 1)
        self.pool = nn.MaxPool2d(2)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(2 * width, 2 * width)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem(x)))
        y = F.relu6(self.depthwise(x))
        x = F.relu(x + self.point(y))
        x = torch.cat([x, F.relu(self.branch(x))], 1)
        x = x * torch.sigmoid(self.squeeze(self.average(x)))
        x = F.avg_pool2d(x, 2)
        x = self.average(x).flatten(1)
        return self.fc(F.relu(self.hidden(x)))


def quantized(
    model: nn.Module | Program, *shape: int, dtype: torch.dtype = torch.uint8, weight_bits: int = 8
) -> Program:
    """Quantize a model by hand; ranges are those of one random batch of this shape."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    program = model if isinstance(model, Program) else trace(model.eval(), x)
    root = referenced_tree(program.root, program.graph)
    values = _Recorder(program.module)
    values.run(x)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, copies))
    for node in list(graph.nodes):
        if node.op == "call_module" and type(layer := program.owner(str(node.target))) in QUANTIZED:
            place(root, str(node.target), _integers(layer, weight_bits))
    for old, new in copies.items():
        value = values.seen.get(old.name)
        if value is None or not value.is_floating_point() or (len(old.users) == 1 and _fuses(program, old)):
            continue
        scale, zero_point = _range(value, dtype)
        readers = list(new.users)
        with graph.inserting_after(new):
            q = graph.call_function(quantize, (new, scale, zero_point, dtype))
        with graph.inserting_after(q):
            real = graph.call_function(dequantize, (q, scale, zero_point))
        for reader in readers:
            reader.replace_input_with(new, real)
    return replace(program, graph=graph, root=root)


def _fuses(program: Program, node: fx.Node) -> bool:
    """Tell whether the only reader can take the unrounded value: a clamp that becomes part of it, or a reshape."""
    (reader,) = node.users
    call = normalise(program, reader) if reader.op.startswith("call_") else None
    return call is not None and (call.key == "flatten" or call.title.lower() in ("relu", "relu6"))


def _integers(layer: Any, bits: int) -> nn.Module:
    weight = cast(Tensor, layer.weight).detach()
    limit = 2 ** (bits - 1) - 1
    scale = weight.abs().flatten(1).amax(1).clamp_min(1e-8) / limit
    if isinstance(layer, nn.Linear):
        made: Any = QUANTIZED[nn.Linear](
            layer.in_features, layer.out_features, bias=layer._parameters["bias"] is not None
        )
    else:
        made = QUANTIZED[type(layer)](
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=layer._parameters["bias"] is not None,
        )
    integers = torch.round(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).clamp(-limit, limit)
    made.weight = nn.Parameter(integers.to(torch.int8), requires_grad=False)
    made.weight_scale.copy_(scale)
    if layer._parameters["bias"] is not None:
        made.bias = nn.Parameter(layer.bias.detach().clone())
    return made.eval()


def _range(value: Tensor, dtype: torch.dtype) -> tuple[float, int]:
    low, high = min(float(value.min()), 0.0), max(float(value.max()), 1e-6)
    limits = torch.iinfo(dtype)
    scale = (high - low) / 255
    return scale, max(limits.min, min(limits.max, round(limits.min - low / scale)))


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "output":
            self.seen[n.name] = value.detach()
        return value
