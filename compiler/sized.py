"""Tracing where sizes are numbers, for code that computes with shapes and branches on them.

Every value is computed along on meta tensors, for two batch sizes at once. A size that comes out the same for both is
a number to Python, so it may be branched on, multiplied, rounded; one that differs follows the batch, and stays a value
of the graph. What is written into tensors becomes explicit on the way:

    x[index] = y        ->   x = put(x, y, index)
    x[a:b].zero_()      ->   x = x * mask
    x.new_zeros(...)    ->   a constant, with everything that is computed from constants alone
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import fx, nn
from torch.fx.proxy import Attribute, TraceError

from . import functional
from .program import submodule

Pair = tuple[Any, Any]
"""A value for the one batch size and for the other."""

_CALL: Final[Any] = nn.Module.__call__
_GETATTR: Final[Any] = nn.Module.__getattr__
_CREATING: Final = frozenset({"new_zeros", "new_ones", "new_full", "new_empty"})
_NUMBERS: Final = (int, float, bool)


class SizedProxy(fx.Proxy):
    """A value of the graph that knows its sizes."""

    node: fx.Node
    tracer: SizedTracing
    view_of: tuple[SizedProxy, Any] | None = None
    """Of what it is a part, and which."""

    @property
    def pair(self) -> Pair:
        """The value for both batch sizes, on meta tensors."""
        return self.tracer.pairs[self.node]

    @property
    def shape(self) -> tuple[Any, ...]:
        """Numbers, and values of the graph where a size follows the batch."""
        return tuple(self.size(axis) for axis in range(self.dim()))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.dim()

    def size(self, dim: int | None = None) -> Any:
        """Return one size or all of them."""
        if dim is None:
            return self.shape
        one, other = (value.shape[dim] for value in self.pair)
        return one if one == other else self.tracer.create_proxy("call_method", "size", (self, dim), {})

    def dim(self) -> int:
        """Number of axes."""
        return self.pair[0].dim()

    def numel(self) -> Any:
        """Return the number of elements."""
        one, other = (value.numel() for value in self.pair)
        return one if one == other else self.tracer.create_proxy("call_method", "numel", (self,), {})

    def __getattr__(self, name: str) -> Any:
        """Return what else a tensor has."""
        return self.tracer.part(self, self.pair, name)

    def __len__(self) -> int:
        """Return what Python wants to loop over."""
        one, other = (len(value) for value in self.pair)
        if one != other:
            raise TraceError("the length of a tensor follows the batch")
        return one

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Loop over the parts."""
        return (self[index] for index in range(len(self)))

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


class _Fact(Attribute):
    """A dtype or a device: a value of the graph, of which Python may know what it is now."""

    tracer: SizedTracing

    def __init__(self, of: fx.Proxy, name: str, pair: Pair) -> None:
        self.pair = pair
        super().__init__(of, name)

    def __getattr__(self, name: str) -> Any:
        """Return a number or a text."""
        if name == "type" and isinstance(self.pair[0], torch.device):  # and not "meta"
            return self.tracer.device.type
        return self.tracer.part(self, self.pair, name)


class SizedTracing(fx.Tracer):
    """What tracers with sizes share; ``pairs`` must hold the values of nodes that were there before."""

    pairs: dict[fx.Node, Pair]

    def proxy(self, node: fx.Node) -> SizedProxy:
        """Return a value that knows its sizes."""
        return SizedProxy(node, self)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((tensor.device for tensor in self.root.parameters()), torch.device("cpu"))

    def part(self, owner: fx.Proxy, pair: Pair, name: str) -> Any:
        """Return an attribute of a value: a number, a tensor, a method, or a fact about it."""
        one, other = (getattr(value, name) for value in pair)
        if isinstance(one, _NUMBERS) and one == other:
            return one
        if isinstance(one, torch.Tensor):
            return self.create_proxy("call_function", getattr, (owner, name), {})
        return Attribute(owner, name) if callable(one) else _Fact(owner, name, pair=(one, other))

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
            if target == "to" and not kwargs and args[1:] == (self.device,):  # where all of the model is
                return first
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        pair = self.computed(proxy.node)
        one, other = pair
        if isinstance(one, _NUMBERS) and type(one) is type(other) and one == other and kind != "get_attr":
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

    def _pair(self, node: fx.Node) -> Pair:
        if node not in self.pairs:  # a literal tensor, of which fx makes a node by itself
            self.pairs[node] = self.computed(node)
        return self.pairs[node]

    def computed(self, node: fx.Node) -> Pair:
        """Return the value of a node whose inputs have theirs.

        Raises:
            TraceError: The operation does not take what it is given.
        """
        if node.op == "get_attr":
            value = _attribute(self.root, str(node.target))
            meta = value.detach().to("meta") if isinstance(value, torch.Tensor) else value
            return meta, meta
        values: list[Any] = []
        for index in (0, 1):
            args, kwargs = mapped((node.args, dict(node.kwargs)), lambda n, i=index: self._pair(n)[i])
            try:
                with torch.no_grad(), _untraced():
                    values.append(_run(self.root, node, args, kwargs))
            except Exception as error:
                first = (str(error).splitlines() or [""])[0]
                raise TraceError(f"{node.target} does not run: {first}") from error
        return values[0], values[1]


def two_sizes(inputs: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> list[Pair]:
    """Return inputs of these shapes as meta tensors, for the batch size that they have and for another."""
    ones = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in inputs]
    if not all(shape for shape, _ in inputs):
        return list(zip(ones, ones, strict=True))
    return [(x, x.new_empty((x.shape[0] + 1, *x.shape[1:]))) for x in ones]


def mapped(argument: Any, of: Callable[[fx.Node], Any]) -> Any:
    """Return plain tuples, lists and dicts with something else in place of every node."""
    if isinstance(argument, fx.Node):
        return of(argument)
    if isinstance(argument, list):
        return [mapped(a, of) for a in argument]
    if type(argument) is tuple:
        return tuple(mapped(a, of) for a in argument)
    if isinstance(argument, dict):
        return {key: mapped(value, of) for key, value in argument.items()}
    if isinstance(argument, slice):
        return slice(mapped(argument.start, of), mapped(argument.stop, of), mapped(argument.step, of))
    return argument


@contextmanager
def _untraced() -> Generator[None]:
    """Let modules run as they are, while a tracer watches all modules."""
    module: Any = nn.Module
    watched = module.__call__, module.__getattr__
    module.__call__, module.__getattr__ = _CALL, _GETATTR
    try:
        yield
    finally:
        module.__call__, module.__getattr__ = watched


def _run(root: nn.Module, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if node.op == "call_module":
        module = submodule(root, str(node.target))
        modes = [(m.__dict__, m.__dict__["training"]) for m in module.modules()]
        state = {k: v.detach().to("meta") for k, v in [*module.named_parameters(), *module.named_buffers()]}
        try:
            for space, _ in modes:  # a tracer may have put there what layers do not take
                space["training"] = False
            return torch.func.functional_call(module, state, tuple(args), dict(kwargs))
        finally:
            for space, mode in modes:
                space["training"] = mode
    args, kwargs = [_on_meta(a) for a in args], {name: _on_meta(value) for name, value in kwargs.items()}
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function: Any = node.target
    return function(*args, **kwargs)


def _on_meta(argument: Any) -> Any:
    return torch.device("meta") if isinstance(argument, torch.device) else argument


def _attribute(root: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    module = submodule(root, owner)
    for space in (module._parameters, module._buffers, module.__dict__):  # getattr would be traced, without end
        if name in space:
            return space[name]
    return getattr(module, name)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _flat(part)
    elif isinstance(value, dict):
        yield from _flat(tuple(value.values()))
    else:
        yield value
