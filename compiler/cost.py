"""The one place that counts: parameters, multiply-accumulates, bytes.

* **MACs** count convolutions, linear layers and matrix products, per sample: a weight's elements times the positions
  it is applied to (bias, normalisation, activations count nothing). Papers that say FLOPs mean MACs or 2 x MACs;
  reports offer both. What is computed in training only counts nothing.
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

from .auxiliary import in_evaluation
from .ops import Call, normalise
from .program import Program
from .shapes import is_tensor, shape_of
from .spelt import explicit


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
    """Yield each convolution and linear layer with the number of positions that its weight is applied to.

    In evaluation mode, that is: auxiliary heads are applied to none.
    """
    evaluated = set(in_evaluation(program.graph))
    for call, positions in _applied(program):
        yield call, positions if call.node in evaluated else 0


def _applied(program: Program) -> Iterator[tuple[Call, int]]:
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
    for product in products(program):
        macs = product.elements * math.prod(shape_of(product.operand)[axis] for axis in product.summed)
        yield LayerCost(product.node.name, "matmul", 0, 0, 0, macs // batch_of(program))


@dataclass(frozen=True)
class Product:
    """A product of two activations."""

    node: fx.Node
    elements: int
    """Of the result."""
    operand: fx.Node
    summed: tuple[int, ...]
    """Axes of the operand that are summed over."""
    gives: bool
    """Whether the result is what the node gives; else it stays inside."""


def products(program: Program) -> Iterator[Product]:
    """Yield products of two activations: matmul, einsum, and the two that attention is made of."""
    for node in in_evaluation(program.graph):
        call = normalise(program, node) if node.op in ("call_function", "call_method") else None
        if call is None or not is_tensor(node):
            continue
        elements = math.prod(shape_of(node))
        if call.key == "matmul":
            yield Product(node, elements, call.input, (len(shape_of(call.input)) - 1,), gives=True)
        elif call.key == "attention":
            query, key = shape_of(call["query"]), shape_of(call["key"])
            scores = math.prod(query[:-1]) * key[-2]
            yield Product(node, scores, call["query"], (len(query) - 1,), gives=False)
            yield Product(node, elements, call["key"], (len(key) - 2,), gives=True)
        elif call.key == "einsum" and isinstance(call["operands"], (tuple, list)) and len(call["operands"]) == 2:
            equation = explicit(str(call["equation"]), [len(shape_of(x)) for x in call["operands"]])
            given, _, result = equation.partition("->")
            letters = given.split(",")[0]
            summed = tuple(axis for axis, letter in enumerate(letters) if letter not in result)
            yield Product(node, elements, call["operands"][0], summed, gives=True)


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
