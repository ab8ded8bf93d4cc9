"""Which operations run in integers, and which tensors are quantized for that.

An operation runs in int8 if integer kernels know it and integers reach it. Four kinds:

* weighted    convolution, linear: int8 weight; starts a stretch of integers wherever it stands
* mixing      add, mul, cat, average pools, sigmoid ...: results have a range of their own
* moving      max pool, reshape, split, slice, zero padding ...: results have the range of their input
* clipping    relu, relu6 ... right behind a weighted or mixing operation: the range of the result says it all

Every tensor that an int8 operation reads or makes is quantized, except: what a clipping operation takes up at once;
what a linear layer gives to operations in float, or to the model's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import torch
from torch import fx

from ...compiler.functional import dequantize
from ...compiler.layers import layer_class
from ...compiler.ops import Call
from ...compiler.quantized import QUANTIZED
from ...compiler.shapes import concrete, is_tensor, shape_of, value_of
from ..edit import Edit


class Kind(Enum):
    """How an operation runs."""

    WEIGHTED = "weighted"
    MIXING = "mixing"
    MOVING = "moving"
    CLIPPING = "clipping"
    FLOAT = "float"


_MOVING: Final = frozenset(
    "max_pool reshape reshape_as flatten unflatten permute transpose movedim squeeze unsqueeze expand split chunk "
    "tensor_split unbind getitem select narrow index_select channel_shuffle pixel_shuffle pixel_unshuffle copy roll "
    "flip stack".split()
)
_MIXING: Final = frozenset("cat avg_pool adaptive_pool".split())
_CLIPPING: Final = frozenset("relu relu6 hardtanh clamp clip clamp_min".split())
_LOOKED_UP: Final = frozenset("sigmoid hardsigmoid leaky_relu".split())
_PRODUCTS: Final = frozenset("add iadd mul imul multiply".split())


@dataclass(frozen=True)
class Place:
    """Where one node stands."""

    kind: Kind
    reason: str = ""
    """Why it runs in float."""


@dataclass
class Placement:
    """The decision for a whole graph."""

    places: dict[fx.Node, Place] = field(default_factory=dict[fx.Node, Place])
    """Every operation on tensors."""
    tensors: dict[fx.Node, fx.Node | None] = field(default_factory=dict[fx.Node, "fx.Node | None"])
    """Tensors to be quantized, in graph order -> the tensor whose range they have, ``None`` for one of their own."""

    def in_int8(self, node: fx.Node) -> bool:
        """Tell whether an operation runs in integers."""
        return node in self.places and self.places[node].kind is not Kind.FLOAT


def decide(edit: Edit, keep_float: Callable[[Call], str | None]) -> Placement:
    """Decide for every node.

    Args:
        edit: The program, canonicalised.
        keep_float: Tells why an operation has to stay in float, ``None`` if it need not.
    """
    placement = Placement()
    integers: set[fx.Node] = set()
    for node in edit.graph.nodes:
        call = edit.call(node)
        if call is None or not _is_operation(node):
            continue
        place = _place(call, keep_float(call), integers, placement)
        placement.places[node] = place
        if place.kind is not Kind.FLOAT:
            integers.add(node)
    _choose_tensors(edit, placement)
    return placement


def _is_operation(node: fx.Node) -> bool:
    value = value_of(node)
    return is_tensor(node) or (isinstance(value, tuple) and any(hasattr(v, "dtype") for v in value))


def _place(call: Call, why_float: str | None, integers: set[fx.Node], placement: Placement) -> Place:
    if why_float is not None:
        return Place(Kind.FLOAT, why_float)
    title = call.title.rstrip("_").lower()
    if call.key in ("conv", "linear"):
        return _weighted(call)
    inputs = [n for n in call.node.all_input_nodes if _is_float(n)]
    reached = [n for n in inputs if n in integers]
    if not reached:
        return Place(Kind.FLOAT, "no integers reach it")
    if call.key in _MOVING or (call.key == "pad" and _pads_zeros(call)):
        return Place(Kind.MOVING)
    if call.key == "adaptive_pool" and "max" in title:
        return Place(Kind.MOVING)
    if call.key in _MIXING or title in _LOOKED_UP:
        return Place(Kind.MIXING)
    if call.key == "binary" and title in _PRODUCTS:
        constant = len(inputs) < 2 or any(n.op == "get_attr" for n in inputs)
        return Place(Kind.FLOAT, "one operand is a constant") if constant else Place(Kind.MIXING)
    if title in _CLIPPING:
        source = call.input
        alone = len(source.users) == 1 and placement.places[source].kind in (Kind.WEIGHTED, Kind.MIXING)
        return Place(Kind.CLIPPING if alone else Kind.MIXING)
    return Place(Kind.FLOAT, f"there is no integer form of {call.title}")


def _weighted(call: Call) -> Place:
    if call.module is None:
        return Place(Kind.FLOAT, "its weight is computed by the graph")
    if layer_class(type(call.module)) not in QUANTIZED:
        stored = not call["weight"].is_floating_point()
        return Place(Kind.FLOAT, "it is quantized already" if stored else f"{call.title} has no quantized form")
    return Place(Kind.WEIGHTED)


def _is_float(node: fx.Node) -> bool:
    value = value_of(node)
    if isinstance(value, tuple):
        return any(getattr(v, "dtype", None) == torch.float32 for v in value)
    return is_tensor(node) and value_of(node).dtype == torch.float32 and node.target is not dequantize


def _pads_zeros(call: Call) -> bool:
    return call.params.get("mode", "constant") == "constant" and not concrete(call.params.get("value"))


def _choose_tensors(edit: Edit, placement: Placement) -> None:
    wanted: set[fx.Node] = set()
    for node in edit.graph.nodes:
        if not placement.in_int8(node):
            continue
        place = placement.places[node]
        for source in node.all_input_nodes:
            absorbed = place.kind is Kind.CLIPPING
            if is_tensor(source) and _is_float(source) and source.op != "get_attr" and not absorbed:
                wanted.add(source)
        if is_tensor(node) and not _taken_up(node, placement) and not _left_in_float(edit, node, placement):
            wanted.add(node)
    for node in edit.graph.nodes:
        if node in wanted:
            placement.tensors[node] = _range_of(node, placement)


def _taken_up(node: fx.Node, placement: Placement) -> bool:
    """Tell whether a clipping operation is all that reads a tensor."""
    return any(placement.in_int8(u) and placement.places[u].kind is Kind.CLIPPING for u in node.users)


def _left_in_float(edit: Edit, node: fx.Node, placement: Placement) -> bool:
    call = edit.call(node)
    linear = call is not None and call.key == "linear"
    return linear and not any(placement.in_int8(user) for user in node.users)


def _range_of(node: fx.Node, placement: Placement) -> fx.Node | None:
    """Return the quantized tensor that a moved one has its values from; through tuples (split, chunk) too."""
    at = node
    while placement.in_int8(at) and placement.places[at].kind is Kind.MOVING:
        sources = [n for n in at.all_input_nodes if _is_float(n)]
        if len(sources) != 1:
            return None
        at = sources[0]
        if at in placement.tensors:
            return placement.tensors[at] or at
    return None


def describe(call: Call) -> str:
    """Name an operation for a person."""
    return call.owner or call.node.name


def channel_axis(call: Call) -> int:
    """Return the axis of the input along which a weighted operation has its channels."""
    rank = len(shape_of(call.input))
    return rank - 1 if call.key == "linear" else rank - call["weight"].ndim + 1
