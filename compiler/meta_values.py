"""Tracers that know the values of their graph: on meta tensors, for inputs of two sizes at once.

What comes out the same for two batch sizes does not follow the batch.
"""

from __future__ import annotations

import dis
import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Final, cast

import torch
from torch import fx, nn
from torch.fx.proxy import Attribute, TraceError

from . import hooks
from .devices import call_on_meta, device_of
from .kinds import ClassedProxy
from .program import submodule

Pair = tuple[Any, Any]
"""A value for inputs of the one size and of the other."""

NUMBERS: Final = (int, float, bool)


class ValuedProxy(ClassedProxy):
    """A value of the graph that knows what it is for two sizes of inputs."""

    node: fx.Node
    tracer: ValuedTracing

    @property
    def pair(self) -> Pair:
        """The value for both, on meta tensors."""
        return self.tracer.pair_of(self.node)

    def kind(self) -> type:
        """Return the class of the value."""
        return type(self.pair[0])

    @property
    def shape(self) -> tuple[Any, ...]:
        """All sizes."""
        return tuple(self.size(axis) for axis in range(self.dim()))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.dim()

    def dim(self) -> int:
        """Number of axes."""
        return self.pair[0].dim()

    def size(self, dim: int | None = None) -> Any:
        """Return one size, as a value of the graph, or all of them."""
        return self.shape if dim is None else self.tracer.create_proxy("call_method", "size", (self, dim), {})

    def length(self) -> Any:
        """Return the size of the first axis, or the number of results."""
        value = self.pair[0]
        return self.size(0) if isinstance(value, torch.Tensor) else len(value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call what can be called. Else it is what it is: every proxy is callable to code that asks before it calls."""
        called = callable(self.pair[0]) or args or kwargs
        return super().__call__(*args, **kwargs) if called else self

    def __index__(self) -> int:
        """Refuse to be a number, with a reason.

        Raises:
            TraceError: Always.
        """
        raise TraceError("Python needs a size as a number that follows the batch")

    __int__ = __index__

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Loop over results, over as many parts of a tensor as are unpacked, or over all where that is a number."""
        unpacked = _unpacked_by(sys._getframe(1))
        whole: Any = self
        return (whole[place] for place in range(operator.index(self.length()) if unpacked is None else unpacked))

    def __len__(self) -> int:
        """Return the length as a number, which Python itself insists on: ``list(x)``."""
        return operator.index(self.length())


class Fact(ClassedProxy, Attribute):
    """A dtype or a device: a value of the graph, of which Python may know what it is now."""

    tracer: ValuedTracing

    def __init__(self, of: fx.Proxy, name: str, pair: Pair) -> None:
        self.pair = pair
        super().__init__(of, name)

    @property
    def known(self) -> Any:
        """What it is now, and not "meta"."""
        return device_of(self.tracer.root) if isinstance(self.pair[0], torch.device) else self.pair[0]

    def kind(self) -> type:
        """Return the class of what it is now."""
        return type(self.known)

    def __eq__(self, other: object) -> bool:
        """Compare with another, or with a device or type that code names."""
        return bool(self.known == (other.known if isinstance(other, Fact) else other))

    def __ne__(self, other: object) -> bool:
        """Compare likewise."""
        return not self == other

    __hash__ = fx.Proxy.__hash__

    def __getattr__(self, name: str) -> Any:
        """Return a number or a text."""
        if name == "type" and isinstance(self.known, torch.device):
            return self.known.type
        return self.tracer.part(self, self.pair, name)


class ValuedTracing(fx.Tracer):
    """What such tracers share; ``pairs`` must hold the values of nodes that were there before."""

    pairs: dict[fx.Node, Pair]
    running: bool = False
    """Whether modules run to give values; they are not traced meanwhile."""

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace a module, or run it."""
        return forward(*args, **kwargs) if self.running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return an attribute of a module, as a value of the graph or as it is."""
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def part(self, owner: fx.Proxy, pair: Pair, name: str) -> Any:
        """Return an attribute of a value: a number, a tensor, a method, or a fact about it."""
        one, other = (getattr(value, name) for value in pair)
        if isinstance(one, NUMBERS) and one == other:
            return one
        if isinstance(one, torch.Tensor):
            return self.create_proxy("call_function", getattr, (owner, name), {})
        return Attribute(owner, name) if callable(one) else Fact(owner, name, pair=(one, other))

    def pair_of(self, node: fx.Node) -> Pair:
        """Return the value of a node, computed from the inputs on if nobody has asked before."""
        if node not in self.pairs:
            needed = sources({node}, lambda n: n not in self.pairs)
            for source in [n for n in node.graph.nodes if n in needed]:
                self.pairs[source] = self.computed(source)
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
            args, kwargs = mapped((node.args, dict(node.kwargs)), lambda n, i=index: self.pair_of(n)[i])
            self.running = True
            try:
                with torch.no_grad():
                    values.append(_run(self.root, node, args, kwargs))
            except Exception as error:
                first = (str(error).splitlines() or [""])[0]
                raise TraceError(f"{node.target} does not run: {first}") from error
            finally:
                self.running = False
        return values[0], values[1]


def _unpacked_by(frame: FrameType) -> int | None:
    """Return how many names code is about to unpack something into: ``q, k, v = x``."""
    at = next((i for i in dis.get_instructions(frame.f_code) if i.offset == frame.f_lasti), None)
    return at.argval if at is not None and at.opname == "UNPACK_SEQUENCE" else None


def two_sizes(inputs: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> list[Pair]:
    """Return inputs of these shapes as meta tensors, for the batch size that they have and for another."""
    ones = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in inputs]
    if not all(shape for shape, _ in inputs):
        return list(zip(ones, ones, strict=True))
    return [(x, x.new_empty((x.shape[0] + 1, *x.shape[1:]))) for x in ones]


def larger_sizes(inputs: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> list[Pair]:
    """Return images as meta tensors, in the size that they have and in another that is larger by 64 at the least.

    The batch is one more; sizes are multiples of those given, since models may ask for that. Channels stay.
    """
    ones = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in inputs]
    factor = 1 + max(math.ceil(64 / max(size, 1)) for x in ones for size in x.shape[2:])
    return [(x, x.new_empty((x.shape[0] + 1, x.shape[1], *(size * factor for size in x.shape[2:])))) for x in ones]


def sources(nodes: Iterable[fx.Node], wanted: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Return nodes and what they are computed from, as far as it is wanted."""
    missing, found = [*nodes], {*nodes}
    while missing:
        new = {*filter(wanted, missing.pop().all_input_nodes)} - found
        found |= new
        missing += new
    return found


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


def _run(root: nn.Module, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if node.op == "call_module":
        module = submodule(root, str(node.target))
        modes = [(m.__dict__, m.__dict__["training"]) for m in module.modules()]
        state = {k: v.detach().to("meta") for k, v in [*module.named_parameters(), *module.named_buffers()]}
        try:
            for space, _ in modes:  # a tracer may have put there what layers do not take
                space["training"] = False
            with hooks.without(module):
                return torch.func.functional_call(module, state, tuple(args), dict(kwargs))
        finally:
            for space, mode in modes:
                space["training"] = mode
    return call_on_meta(cast(Any, node.target), args, kwargs)


def _attribute(root: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    module = submodule(root, owner)
    for space in (module._parameters, module._buffers, module.__dict__):  # getattr would be traced, without end
        if name in space:
            return space[name]
    return getattr(module, name)
