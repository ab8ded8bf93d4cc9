"""Tracing where sizes are numbers, for code that computes with shapes and branches on them.

Every value is computed along (see :mod:`.meta_values`). A size that comes out the same for both batch sizes is a number
to Python, so it may be branched on, multiplied, rounded; one that differs follows the batch, and stays a value
of the graph. What is written into tensors becomes explicit on the way:

    x[index] = y        ->   x = put(x, y, index)
    x[a:b].zero_()      ->   x = x * mask
    x.new_zeros(...)    ->   a constant, with everything that is computed from constants alone
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import fx

from . import functional
from .meta_values import NUMBERS, ValuedProxy, ValuedTracing

_CREATING: Final = frozenset({"new_zeros", "new_ones", "new_full", "new_empty"})


class SizedProxy(ValuedProxy):
    """A value of the graph that knows its sizes."""

    view_of: tuple[SizedProxy, Any] | None = None
    """Of what it is a part, and which."""

    def size(self, dim: int | None = None) -> Any:
        """Return one size or all of them: numbers, and values of the graph where they follow the batch."""
        if dim is None:
            return self.shape
        one, other = (value.shape[dim] for value in self.pair)
        return one if one == other else super().size(dim)

    def numel(self) -> Any:
        """Return the number of elements."""
        one, other = (value.numel() for value in self.pair)
        return one if one == other else self.tracer.create_proxy("call_method", "numel", (self,), {})

    def __getattr__(self, name: str) -> Any:
        """Return what else a tensor has."""
        return self.tracer.part(self, self.pair, name)

    def __getitem__(self, index: Any) -> Any:
        """Remember what it is a part of."""
        part = self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})
        if isinstance(part, SizedProxy) and isinstance(self.pair[0], torch.Tensor):
            part.view_of = self, index
        return part

    def __setitem__(self, index: Any, value: Any) -> None:
        """Stand for the tensor in which the part is another."""
        self.node = self.tracer.create_proxy("call_function", functional.put, (self, value, index), {}).node
        if self.view_of is not None:
            base, where = self.view_of
            base[where] = self

    def cleared(self) -> None:
        """Stand for zeros; what it is a part of has zeros there."""
        if self.view_of is None:
            self.node = self.tracer.create_proxy("call_function", operator.mul, (self, 0), {}).node
            return
        base, index = self.view_of
        if base.pair[0].shape != base.pair[1].shape:
            base[index] = 0.0
            return
        mask = torch.ones(base.pair[0].shape, dtype=base.pair[0].dtype)
        mask[index] = 0
        base.node = self.tracer.create_proxy("call_function", operator.mul, (base, mask), {}).node


class SizedTracing(ValuedTracing):
    """What tracers with sizes share."""

    def proxy(self, node: fx.Node) -> SizedProxy:
        """Return a value that knows its sizes."""
        return SizedProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Make a node, or compute a number or a constant."""
        first = args[0] if args else None
        if kind == "call_method" and isinstance(first, SizedProxy):
            if target in _CREATING and not any(isinstance(a, fx.Proxy) for a in _flat((args[1:], kwargs))):
                kwargs = {k: v for k, v in kwargs.items() if k != "device"}
                return getattr(torch.empty((), dtype=first.pair[0].dtype), target)(*args[1:], **kwargs)
            if target == "zero_":
                first.cleared()
                return first
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        pair = self.computed(proxy.node)
        one, other = pair
        if isinstance(one, NUMBERS) and type(one) is type(other) and one == other and kind != "get_attr":
            proxy.node.graph.erase_node(proxy.node)
            return one
        self.pairs[proxy.node] = pair
        changed = kind == "call_method" and target.endswith("_") and not target.endswith("__")
        if changed and isinstance(first, SizedProxy):
            first.node = proxy.node
            if first.view_of is not None:
                base, index = first.view_of
                base[index] = proxy
        return proxy


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _flat(part)
    elif isinstance(value, dict):
        yield from _flat(tuple(value.values()))
    else:
        yield value
