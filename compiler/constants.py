"""Constant channels: what is known of every tensor whatever the input is, by interpreting the graph over values.

The *value* of a tensor is a float64 array of its rank, with size 1 along the axes that it does not vary along; NaN
where nothing is known. An activation [N, C, H, W] is known per channel, as [1, C, 1, 1]: a number means that the
channel is that constant in every sample and at every position. Axes without channel labels (batch, space) stay size 1,
since what is told apart there would hold for the example's sizes only.

    a row of zeros in a layer       its bias, or 0
    batch norm of scale 0           its bias
    known inputs                    computed, with the operation itself, in float64
    a product with zeros            0
    data movement                   the rules of the channel analysis, run on positions in place of channels

Everything else is unknown. All of it holds for evaluation mode and finite activations: 0 x is taken to be 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from . import constant_layers, constant_products, constant_rules, constant_spatial
from .constant_layers import Reading
from .constant_products import Product
from .constant_rules import may_share_memory
from .constant_values import RULES, KnownValues, Value, as_value, restricted, vector
from .dependency import ChannelDependencies
from .mutation import is_in_place
from .ops import normalise
from .program import TRAINING, Program, TensorSpec
from .shapes import is_tensor, shape_of, value_of

FAMILIES = (constant_layers, constant_products, constant_rules, constant_spatial)
"""Importing them fills the table of rules."""


@dataclass(frozen=True, eq=False)
class Constants:
    """What is known of the tensors of a program."""

    values: Mapping[fx.Node, Any]
    """Node -> value of its tensor, as it is before anything changes it in place (a tuple for several tensors); None
    where nothing is known."""
    readings: Mapping[fx.Node, Reading]
    """Convolution or linear layer -> what it knows of its input channels."""
    products: Mapping[fx.Node, Sequence[Product]]
    """Product of activations -> where it is 0; two of them for attention."""

    def channels(self, node: fx.Node, axis: int = 1) -> Value:
        """Return the constant of every channel along an axis of a tensor, NaN where it is none: float64 [C]."""
        return vector(self.values.get(node), shape_of(node), axis)


def find_constants(program: Program, deps: ChannelDependencies) -> Constants:
    """Find the channels whose value does not depend on the input.

    Args:
        program: A captured program with inferred shapes.
        deps: Its channel analysis, whose labels say which axes hold channels.
    """
    with torch.no_grad(), np.errstate(all="ignore"):
        return _Interpreter(program, deps).run()


class _Interpreter:
    def __init__(self, program: Program, deps: ChannelDependencies) -> None:
        self.program = program
        self.deps = deps
        self.known = KnownValues(program)
        self.memory: dict[fx.Node, fx.Node] = {}
        """Node -> the first node whose memory it may share."""
        self.written = self._written_tensors()

    def run(self) -> Constants:
        values: dict[fx.Node, Any] = {}
        for node in self.program.graph.nodes:
            values[node] = self.known.now[node] = restricted(self._value(node), self.deps.labels.get(node))
            self._follow_memory(node)
        return Constants(values, self.known.readings, self.known.products)

    def _value(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._attribute(node)
        if not node.op.startswith("call_") or not _holds_tensors(value_of(node)):
            return None
        call = normalise(self.program, node)
        found = RULES.get(call.key)
        return found(self.known, call) if found is not None else None

    def _attribute(self, node: fx.Node) -> Value | None:
        if node.target == TRAINING or not is_tensor(node):
            return None
        tensor: Tensor = self.program.attribute(str(node.target))
        return as_value(tensor) if tensor.is_floating_point() and id(tensor) not in self.written else None

    # In-place operations ------------------------------------------------------------------------------------------

    def _written_tensors(self) -> set[int]:
        """Return the parameters and buffers that the model writes to: they are not the same at the next call."""
        found: set[int] = set()
        for node in self.program.graph.nodes:
            target = _first(node) if is_in_place(node, self.program.root) else None
            while target is not None:
                if target.op == "get_attr":
                    found.add(id(self.program.attribute(str(target.target))))
                target = _first(target)
        return found

    def _follow_memory(self, node: fx.Node) -> None:
        """After an in-place operation its operand holds the result, and other views of that memory are not known."""
        first = _first(node)
        if not node.op.startswith("call_") or first is None:
            return
        in_place = is_in_place(node, self.program.root)
        if in_place or may_share_memory(normalise(self.program, node)):
            self.memory[node] = self.memory.get(first, first)
        if not in_place:
            return
        now, root = self.known.now, self.memory[node]
        result = now[node]
        for other in [root, *(n for n, owner in self.memory.items() if owner is root)]:
            now[other] = None
        now[node], now[first] = result, result if value_of(first) == value_of(node) else None


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(part, TensorSpec) for part in (value if isinstance(value, tuple) else (value,)))


def _first(node: fx.Node) -> fx.Node | None:
    """Return the first operand of a call."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, fx.Node) else None
