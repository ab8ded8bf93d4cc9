"""Trace a model to a :class:`Program`: symbolic torch.fx tracing with torch.nn modules as leaves.

What differs from plain ``fx.symbolic_trace``:

* ``self.training`` stays live where it is *passed on* (``F.dropout(x, p, self.training)``): it becomes a ``get_attr``
  of the root's own flag. Where Python *branches* on it, both modes are captured, and become one graph if training only
  adds to what evaluation computes (see :mod:`.auxiliary`); else evaluation mode is captured, and a note says so.
* our own helpers stay calls, wherever they are called from: an artefact captured again is what it was.
* library helpers that a stand-alone module could not import are replaced by our own of the same behaviour, and so is
  everybody's ``drop_path``.
* failures name the module and the line of the model's own code.
"""

from __future__ import annotations

import inspect
import os
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import fx, nn

from . import functional
from .auxiliary import NOTE, join
from .called_layers import call_layers
from .collection import no_collection
from .errors import CaptureError, CompilerError, UntraceableError
from .expand import expand, is_opaque
from .layers import layer_class
from .modes import merge
from .mutation import is_in_place, seen_elsewhere
from .ops import CLASSES
from .program import TRAINING, InputSpec, Program, referenced_tree
from .shapes import infer, is_tensor
from .sized import Pair, SizedTracing, two_sizes
from .spread_sizes import spread_sizes
from .stochastic_depth import own_stochastic_depth

_REPLACED: Final = {"stochastic_depth": functional.stochastic_depth}
"""Wrapped library functions, by name, and the helper that stands in for each (same parameters, same behaviour)."""


_NAMED: Final = 3
"""Modules that a note names."""


class _TrainingFlag(int):
    """What ``module.training`` is while tracing: to whoever is passed it a graph value, to Python one of the two."""

    branched: list[str]
    path: str
    mode: bool

    def __bool__(self) -> bool:
        self.branched.append(self.path)
        return self.mode


@contextmanager
def _training_flags(model: nn.Module, branched: list[str], mode: bool) -> Generator[None]:
    """Let every module's ``training`` be a flag that tells who branches on it."""
    before: list[tuple[nn.Module, bool]] = []
    try:
        for path, module in model.named_modules():
            before.append((module, module.training))
            flag = _TrainingFlag(0)
            flag.branched, flag.path, flag.mode = branched, path, mode
            module.__dict__["training"] = flag
        yield
    finally:
        for module, training in before:
            module.__dict__["training"] = training


def _remembered(model: nn.Module) -> Callable[[], None]:
    """Return what takes back all that ``forward`` does to modules.

    That is caches, in which values of a graph would stay, hooks, which would run twice, and buffers, which count where
    they are no part of a graph.
    """
    spaces = [module.__dict__ for module in model.modules()]
    held = [value for space in spaces for value in space.values() if type(value) in (dict, OrderedDict, list)]
    before = [(holder, holder.copy()) for holder in (*spaces, *held)]
    buffers = [(b, b._version, b.detach().clone()) for b in model.buffers() if not b.is_inference()]

    def take_back() -> None:
        for buffer, version, content in buffers:
            if buffer._version != version:
                buffer.detach().copy_(content)
        for holder, content in before:
            holder.clear()
            holder.update(content) if isinstance(holder, dict) else holder.extend(content)

    return take_back


class _Tracer(fx.Tracer):
    """fx tracing with live training flags.

    Args:
        given: How many inputs there are; the others have their defaults.
        buffers: Whether what is computed from buffers is part of the graph too. Otherwise it is computed once, now.
    """

    def __init__(self, given: int, *, buffers: bool) -> None:
        super().__init__(autowrap_functions=functional.HELPERS)
        self.given = given
        self.proxy_buffer_attributes = buffers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep whole what runs as a layer that we know does: subclasses that only construct, quantized layers."""
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

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, _TrainingFlag):
            return self.create_node("get_attr", TRAINING, (), {})
        if isinstance(a, dict) and type(a) is not dict:  # OrderedDict outputs of segmentation models
            a = dict(a)
        return super().create_arg(a)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        if kind == "call_function" and (ours := _REPLACED.get(getattr(target, "__name__", ""))) is not None:
            target = ours
        return super().create_node(kind, target, args, kwargs, *rest, **more)


class _SizedTracer(SizedTracing, _Tracer):
    """The same, where sizes are numbers.

    Args:
        sizes: The inputs for two batch sizes.
        buffers: As above.
        branched: Who branches on training flags; what layers do when they run on the way is left out.
    """

    def __init__(self, sizes: Sequence[Pair], branched: list[str], *, buffers: bool) -> None:
        super().__init__(len(sizes), buffers=buffers)
        self.pairs, self.branched = {}, branched
        self.sizes = iter(sizes)

    def computed(self, node: fx.Node) -> Pair:
        """Return what is given for an input, and for the training flag."""
        if node.op == "placeholder":
            return next(self.sizes, (None, None))
        if node.op == "get_attr" and node.target == TRAINING:
            return False, False
        before = len(self.branched)
        pair = super().computed(node)
        del self.branched[before:]
        return pair


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


@no_collection()
def trace(
    model: nn.Module,
    example_inputs: torch.Tensor | Sequence[torch.Tensor],
    *,
    name: str | None = None,
) -> Program:
    """Capture ``model`` once, for evaluation and training alike.

    Args:
        model: Any traceable module. It is neither changed nor copied: the program shares its parameters.
        example_inputs: One tensor, or one per positional input of ``forward``. Only shapes and dtypes matter.
        name: Class name for emitted code; the model's own by default.

    Returns:
        The program, with shapes inferred for the example inputs and dead code removed.

    Raises:
        CaptureError: The model cannot be traced, or does not accept these inputs.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    take_back = _remembered(model)
    try:
        return _traced(model, inputs, name)
    finally:
        take_back()


def _traced(model: nn.Module, inputs: tuple[torch.Tensor, ...], name: str | None) -> Program:
    branched: list[str] = []
    graph, given_up = _trace_graph(model, inputs, branched)
    merged, both = _with_training(model, inputs, graph) if branched else (None, None)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    specs = tuple(InputSpec(node.name, tuple(x.shape), x.dtype) for node, x in zip(placeholders, inputs, strict=False))
    notes = [_one_sided([path or type(model).__name__ for path in dict.fromkeys(branched)])] if branched else []
    if merged is not None:
        graph, notes = merged, []
    elif both is not None:
        graph, notes = both, [NOTE]
    notes += given_up
    class_name = re.sub(r"\W", "_", name or type(model).__name__)
    infer(Program(graph, model, specs))
    _make_mutation_explicit(graph, model)
    for node in graph.nodes:  # else generated code would wrap the helpers again, under whatever names it has for them
        node.meta.pop("is_wrapped", None)
    program = expand(Program(graph, referenced_tree(model, graph), specs, class_name, tuple(notes)))
    call_layers(program, model)
    eliminate_dead_code(program.graph, program.root)
    return replace(program, root=referenced_tree(program.root, program.graph))


def _with_training(
    model: nn.Module, inputs: Sequence[torch.Tensor], evaluation: fx.Graph
) -> tuple[fx.Graph | None, fx.Graph | None]:
    """Return one graph for both modes, if there can be one: of modes alike, or of one that only adds to the other."""
    try:
        training, _ = _trace_graph(model, inputs, [], mode=True)
    except CompilerError:
        return None, None
    merged = merge(evaluation, training, model)
    return merged, join(evaluation, training, model) if merged is None else None


def _one_sided(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    who = f"{', '.join(paths[:_NAMED])}{more} {'branches' if len(paths) == 1 else 'branch'}"
    of = "its evaluation branch was" if len(paths) == 1 else "their evaluation branches were"
    return f"{who} on `training`: {of} captured, for train() too"


def _trace_graph(
    model: nn.Module, inputs: Sequence[torch.Tensor], branched: list[str], *, mode: bool = False
) -> tuple[fx.Graph, list[str]]:
    """Trace symbolically, and with buffers live, as far as Python lets us; also return what had to be given up.

    Python may need the values of buffers (for a list, a loop): then they are what they are now. It may need sizes: then
    they are those of the example inputs, but for the batch.
    """
    failed: CaptureError | None = None
    for sized in (False, True):
        for buffers in (True, False):
            notes = [] if buffers else ["what the model computes from its buffers was computed once, at capture"]
            notes += ["the model computes with sizes, which are those of the example inputs"] if sized else []
            if sized:
                tracer: _Tracer = _SizedTracer(
                    two_sizes([(tuple(x.shape), x.dtype) for x in inputs]), branched, buffers=buffers
                )
            else:
                tracer = _Tracer(len(inputs), buffers=buffers)
            branched.clear()
            take_back, own = _remembered(model), set(model.__dict__)
            try:
                with _training_flags(model, branched, mode), spread_sizes(), own_stochastic_depth(model):
                    return _with_plain_result(tracer.trace(model)), notes
            except CompilerError:
                raise
            except Exception as error:
                found = _capture_error(model, tracer, error)
                found.__cause__ = error
                failed = found if failed is None or not sized else failed
            finally:  # but for literal tensors, which fx stores on the model
                literals = {n: v for n, v in model.__dict__.items() if n not in own and isinstance(v, torch.Tensor)}
                take_back()
                model.__dict__.update(literals)
    assert failed is not None
    raise failed


def _with_plain_result(graph: fx.Graph) -> fx.Graph:
    """Let a graph return the named tuple itself that it makes of its results, not a call that makes it."""
    output = next(iter(reversed(graph.nodes)))
    made: Any = output.args[0]
    kind: Any = made.target if isinstance(made, fx.Node) and made.op == "call_function" else None
    if isinstance(made, fx.Node) and isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        fields: Any = made.args
        output.args = (kind(*fields, **made.kwargs),)
        graph.erase_node(made)
    return graph


def eliminate_dead_code(graph: fx.Graph, root: nn.Module) -> int:
    """Erase calls whose result nobody reads (sizes, unused heads) and that change nothing; returns how many."""
    erased = 0
    for node in reversed(graph.nodes):
        needed = node.users or node.op in ("placeholder", "output") or is_opaque(node)
        if not needed and not seen_elsewhere(node, root):
            graph.erase_node(node)
            erased += 1
    return erased


def _make_mutation_explicit(graph: fx.Graph, model: nn.Module) -> None:
    """Let whoever reads a tensor after it was changed in place read the result of that change.

    The graph then says what happens: ``y = x.relu_(); z = conv(x)`` becomes ``z = conv(y)``.
    """
    position = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        target = node.args[0] if node.args else None
        if is_tensor(target) and is_in_place(node, model):
            target.replace_all_uses_with(node, lambda user, at=position[node]: position[user] > at)


def _capture_error(model: nn.Module, tracer: fx.Tracer, error: Exception) -> UntraceableError:
    """Name the innermost module being called and the line of the model's code that could not be traced."""
    stack = getattr(tracer, "module_stack", {})
    path = next(reversed(stack.values()))[0] if stack else ""
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        owner = model
    frames = traceback.extract_tb(error.__traceback__)
    library = f"{Path(torch.__file__).parent}{os.sep}"  # and not torchvision
    own = [f for f in frames if not f.filename.startswith(library) and f.filename != __file__]
    line = f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else "unknown line"
    first = (str(error).splitlines() or [""])[0].partition(". ")[0]  # the sentence; fx goes on with advice
    return UntraceableError(
        f"cannot trace {type(model).__name__}: {type(error).__name__}: {first}",
        where=f"{path or 'forward'} ({type(owner).__name__}), {line}",
        hint="make control flow independent of tensor values there, or take a submodule that has none; compile, "
        "verify, inspect and explain take what can be traced of it (in Python: secateur.prune_regions)",
    )
