"""The tracers that capture tries one after another, and what they let Python see: flags, sizes, buffers."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from . import functional, hooks
from .devices import device_of, without_moving
from .errors import CaptureError
from .kinds import PlainProxy
from .layers import layer_class
from .meta_values import Pair, ValuedTracing, larger_sizes, two_sizes
from .ops import CLASSES
from .program import TRAINING
from .size_checks import CheckedTracing
from .sized import SizedTracing

_IMAGE: Final = 4
"""Axes that an image has at the least: batch, channels, and the others."""

_DATA: Final = frozenset({"item", "tolist", "numpy"})

_REPLACED: Final = {"stochastic_depth": functional.stochastic_depth}
"""Wrapped library functions, by name, and the helper that stands in for each (same parameters, same behaviour)."""


class TrainingFlag(int):
    """What ``module.training`` is while tracing: to whoever is passed it a graph value, to Python one of the two."""

    branched: list[str]
    path: str
    mode: bool

    def __bool__(self) -> bool:
        self.branched.append(self.path)
        return self.mode


@contextmanager
def training_flags(model: nn.Module, branched: list[str], mode: bool) -> Generator[None]:
    """Let every module's ``training`` be a flag that tells who branches on it."""
    before: list[tuple[nn.Module, bool]] = []
    try:
        for path, module in model.named_modules():
            before.append((module, module.training))
            flag = TrainingFlag(0)
            flag.branched, flag.path, flag.mode = branched, path, mode
            module.__dict__["training"] = flag
        yield
    finally:
        for module, training in before:
            module.__dict__["training"] = training


class Tracer(fx.Tracer):
    """fx tracing with live training flags.

    Args:
        given: How many inputs there are; the others have their defaults.
        buffers: Whether what is computed from buffers is part of the graph too. Otherwise it is computed once, now.
    """

    def __init__(self, given: int, *, buffers: bool) -> None:
        super().__init__(autowrap_functions=functional.HELPERS)
        self.given = given
        self.opened: set[nn.Module] = set()
        """Layers whose own code is traced, with their hooks."""
        self.proxy_buffer_attributes = buffers

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return a value of the graph."""
        return PlainProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep whole what runs as a layer that we know does: subclasses that only construct, quantized layers."""
        if m in self.opened:
            return False
        return layer_class(type(m)) in CLASSES or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Give inputs that are left out their defaults while tracing, so that ``if mask is None`` sees them."""
        inner = inspect.unwrap(root_fn)
        function, args = super().create_args_for_root(inner, is_module, concrete_args)
        proxies = [a for a in args if isinstance(a, fx.Proxy)]
        named = [p for p in proxies if not str(p.node.target).startswith("*")]
        required = [p for p in named if not p.node.args]
        if not len(required) <= self.given <= len(named):
            takes = f"{len(required)} to {len(named)} inputs ({', '.join(p.node.name for p in named)})"
            raise CaptureError(
                f"{type(self.root).__name__} takes {takes}; {self.given} given",
                hint="give one example input for each positional argument of forward()",
            )
        given = {p.node for p in named[: self.given]}
        for place, argument in enumerate(args):  # proxies do not compare: a comparison would be traced
            if isinstance(argument, fx.Proxy) and argument.node not in given:
                args[place] = _left_out(argument.node)
                self.graph.erase_node(argument.node)
        # fx changes functions with stars or keywords, the outermost decorator's too, to take all by position.
        return (root_fn if function is inner else _by_name(root_fn)), args

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace what has no name of its own as the functions that it calls; let what does nothing take lists, too.

        Raises:
            TraceError: It has no name, but weights.
        """
        if type(m) is nn.Identity and len(args) == 1 and not isinstance(args[0], (fx.Proxy, torch.Tensor)):
            return args[0]
        if m not in (self.submodule_paths or {}):
            if any(True for _ in itertools.chain(m.parameters(), m.buffers())):
                raise TraceError(f"a {type(m).__name__} with weights is no submodule: keep it in an nn.ModuleList")
            return forward(*args, **kwargs)
        made = super().call_module(m, forward, args, kwargs)
        whole = hooks.are_traced(m) and self.is_leaf_module(m, self.path_of_module(m))
        if whole and hooks.change(self.root, m, args, kwargs, made):
            self.opened.add(m)
            made = super().call_module(m, forward, args, kwargs)
        return made

    def create_arg(self, a: Any) -> Any:
        """Let a training flag be a node, a number of numpy's a plain one, and a result with named fields a dict."""
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, np.generic):
            return a.item()
        if is_dataclass(a) and not isinstance(a, (type, dict)):
            a = {field.name: getattr(a, field.name) for field in fields(a)}
        if isinstance(a, TrainingFlag):
            return self.create_node("get_attr", TRAINING, (), {})
        if isinstance(a, dict) and type(a) is not dict:  # OrderedDict outputs of segmentation models
            a = dict(a)
        return super().create_arg(a)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        """Put our own helpers in place of the library's."""
        if kind == "call_function" and (ours := _REPLACED.get(getattr(target, "__name__", ""))) is not None:
            target = ours
        return super().create_node(kind, target, args, kwargs, *rest, **more)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Leave tensors where the model is.

        Raises:
            TraceError: The data of a tensor are asked for.
        """
        if kind == "call_method" and target in _DATA:
            raise TraceError(f"Python needs the numbers in a tensor ({target})")
        if kind == "call_method" and target == "to":
            args, kwargs = without_moving(args, kwargs, device_of(self.root))
            if len(args) == 1 and not kwargs:
                return args[0]
        return super().create_proxy(kind, target, args, kwargs, *rest, **more)


class ValuedTracer(ValuedTracing, Tracer):
    """The same, with values for nodes.

    Args:
        sizes: The inputs for two batch sizes.
        buffers: As above.
        branched: Who branches on training flags; what layers do when they run on the way is left out.
    """

    def __init__(self, sizes: Sequence[Pair], branched: list[str], *, buffers: bool) -> None:
        super().__init__(len(sizes), buffers=buffers)
        self.pairs, self.branched = {}, branched
        self.sizes = iter(sizes)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        """Let inputs have their values."""
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        if kind == "placeholder":
            self.pairs[node] = next(self.sizes, (None, None))
        return node

    def computed(self, node: fx.Node) -> Pair:
        """Return what a node computes; for the training flag, what it is in evaluation."""
        if node.op == "placeholder":
            return self.pairs[node]
        if node.op == "get_attr" and node.target == TRAINING:
            return False, False
        before = len(self.branched)
        pair = super().computed(node)
        del self.branched[before:]
        return pair


class CheckedTracer(CheckedTracing, ValuedTracer):
    """The same, where sizes may be asked about (see :mod:`.size_checks`)."""


class SizedTracer(SizedTracing, ValuedTracer):
    """The same, where sizes are numbers (see :mod:`.sized`)."""


def _by_name(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the model and a value for each named parameter, and of nothing for those with stars."""
    code = inspect.unwrap(function).__code__
    positional, named = code.co_argcount - 1, code.co_argcount + code.co_kwonlyargcount - 1
    names = code.co_varnames[code.co_argcount : named + 1]

    def called(model: nn.Module, *values: Any) -> Any:
        return function(model, *values[:positional], **dict(zip(names, values[positional:named], strict=True)))

    return called


def _left_out(node: fx.Node) -> Any:
    """Return what forward() gets for an input that nobody gives."""
    if node.args:
        return node.args[0]
    return {} if str(node.target).startswith("**") else ()


@dataclass(frozen=True)
class Way:
    """A way to trace a model."""

    tracer: Callable[..., Tracer]
    """Makes a tracer from a list, into which it writes who branches on training flags, and forced answers, if any."""
    notes: tuple[str, ...]
    """What is given up."""
    sizes: Literal["unknown", "checked", "numbers"]
    """What Python sees of sizes."""


def ways_of(inputs: Sequence[torch.Tensor]) -> Iterator[Way]:
    """Return what to try, in this order.

    Python may need the values of buffers (for a list, a loop): then they are what they are now. It may need sizes: then
    they are those of the example inputs, but for the batch, unless it only refuses some.
    """
    shapes = [(tuple(x.shape), x.dtype) for x in inputs]
    images = all(x.dim() >= _IMAGE for x in inputs)

    def plain(_: list[str], *, buffers: bool) -> Tracer:
        return Tracer(len(inputs), buffers=buffers)

    def checked(branched: list[str], forced: Sequence[bool] = (), *, buffers: bool) -> Tracer:
        sizes = larger_sizes(shapes) if images else two_sizes(shapes)
        return CheckedTracer(sizes, branched, buffers=buffers, images=images, forced=forced)

    def sized(branched: list[str], *, buffers: bool) -> Tracer:
        return SizedTracer(two_sizes(shapes), branched, buffers=buffers)

    kinds: tuple[tuple[Literal["unknown", "checked", "numbers"], Callable[..., Tracer]], ...]
    kinds = ("unknown", plain), ("checked", checked), ("numbers", sized)
    for sizes, make in kinds:
        for buffers in (True, False):
            notes = () if buffers else ("what the model computes from its buffers was computed once, at capture",)
            if make is sized:
                notes = (*notes, "the model computes with sizes, which are those of the example inputs")
            yield Way(partial(make, buffers=buffers), notes, sizes)
