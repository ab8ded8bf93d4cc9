"""The one place that counts: parameters, multiply-accumulates, bytes.

* **MACs** count convolutions, linear layers and matrix products, per sample: a weight's elements times the positions
  it is applied to (bias, normalisation, activations count nothing). Papers that say FLOPs mean MACs or 2 x MACs;
  reports offer both.
* **params** exclude buffers.
* **bytes** are those of the tensors a weights file holds, parameters and buffers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .ops import Call, normalise
from .program import Program
from .shapes import is_tensor, shape_of


@dataclass(frozen=True)
class Cost:
    """What a program costs."""

    params: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs, and its channels."""

    layer: str
    kind: str
    inputs: int
    outputs: int
    params: int
    macs: int


def measure(program: Program) -> Cost:
    """Count a whole program with inferred shapes."""
    params = nbytes = 0
    seen: set[int] = set()
    for _, tensor in program.tensors():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        nbytes += tensor.numel() * tensor.element_size()
        params += tensor.numel() if isinstance(tensor, torch.nn.Parameter) else 0
    return Cost(params, sum(c.macs for c in layer_costs(program)), nbytes)


def layer_costs(program: Program) -> tuple[LayerCost, ...]:
    """Count every convolution, linear layer and matrix product, one entry per call."""
    return tuple(
        LayerCost(
            layer=call.owner or call.node.name,
            kind=call.key,
            inputs=_channels(call, call.input),
            outputs=_channels(call, call.node),
            params=sum(
                int(math.prod(_dims(call.params.get(name))))
                for name in ("weight", "bias")
                if call.params.get(name) is not None
            ),
            macs=int(math.prod(_dims(call["weight"]))) * positions // batch_of(program),
        )
        for call, positions in weighted_calls(program)
    ) + tuple(_products(program))


def weighted_calls(program: Program) -> Iterator[tuple[Call, int]]:
    """Yield each convolution and linear layer with the number of positions that its weight is applied to."""
    for node in program.graph.nodes:
        if node.op not in ("call_module", "call_function"):
            continue
        call = normalise(program, node)
        if call.key == "conv":
            shape, rank = shape_of(node), len(_dims(call["weight"])) - 2
            yield call, math.prod(shape[: len(shape) - rank - 1]) * math.prod(shape[len(shape) - rank :])
        elif call.key == "conv_transpose":
            shape, rank = shape_of(call.input), len(_dims(call["weight"])) - 2
            yield call, math.prod(shape[: len(shape) - rank - 1]) * math.prod(shape[len(shape) - rank :])
        elif call.key == "linear":
            yield call, math.prod(shape_of(call.input)[:-1])


def _products(program: Program) -> Iterator[LayerCost]:
    for node, left in matrix_products(program):
        macs = math.prod(shape_of(node)) * shape_of(left)[-1]
        yield LayerCost(node.name, "matmul", 0, 0, 0, macs // batch_of(program))


def matrix_products(program: Program) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield products of two activations, [.., m, k] x [.., k, n], with the first of the two: m k n MACs each."""
    for node in program.graph.nodes:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node.op in ("call_function", "call_method") and name in ("matmul", "bmm", "mm") and is_tensor(node):
            left = node.args[0]
            assert isinstance(left, fx.Node)
            yield node, left


def _dims(weight: Any) -> tuple[int, ...]:
    if weight is None:
        return (0,)
    return shape_of(weight) if isinstance(weight, fx.Node) else tuple(weight.shape)


def batch_of(program: Program) -> int:
    """Return the number of samples in the program's first input."""
    shape = program.inputs[0].shape if program.inputs else ()
    return max(shape[0], 1) if shape else 1


def _channels(call: Call, tensor: Any) -> int:
    """Return the channels of what a layer reads or gives."""
    shape = shape_of(tensor)
    return shape[-1] if call.key == "linear" else shape[len(shape) - len(_dims(call["weight"])) + 1]
