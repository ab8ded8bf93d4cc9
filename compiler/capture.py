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

import os
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import fx, nn

from .accepting import accepting_values
from .auxiliary import NOTE, join
from .called_layers import call_layers
from .collection import no_collection
from .devices import device_of
from .errors import CaptureError, CompilerError, UntraceableError
from .expand import expand, is_opaque
from .modes import merge
from .mutation import is_in_place, seen_elsewhere
from .program import InputSpec, Program, referenced_tree
from .shapes import infer, is_tensor
from .size_checks import CheckedTracing, only_refusals
from .stochastic_depth import own_stochastic_depth
from .tracers import Way, training_flags, ways_of

_NAMED: Final = 3
"""Modules that a note names."""


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
    except UntraceableError:
        _check_that_it_runs(model, inputs)
        raise
    finally:
        take_back()


def _check_that_it_runs(model: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    """Run a model that cannot be traced, for what is in its way may be the inputs.

    Raises:
        UntraceableError: It does not take them as they are; still, others may know how to call it.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model.eval()(*(x.to(device_of(model)) for x in inputs))
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        first = (str(error).splitlines() or [""])[0]
        raise UntraceableError(
            f"{type(model).__name__} does not run on inputs of shape {shapes}: {type(error).__name__}: {first}",
            hint="check the input shape (--input)",
        ) from error
    finally:
        for module, training in modes:
            module.training = training


def _traced(model: nn.Module, inputs: tuple[torch.Tensor, ...], name: str | None) -> Program:
    branched: list[str] = []
    graph, way = _trace_graph(model, ways_of(inputs), branched)
    merged, both = _with_training(model, way, graph) if branched else (None, None)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    specs = tuple(InputSpec(node.name, tuple(x.shape), x.dtype) for node, x in zip(placeholders, inputs, strict=False))
    notes = [_one_sided([path or type(model).__name__ for path in dict.fromkeys(branched)])] if branched else []
    if merged is not None:
        graph, notes = merged, []
    elif both is not None:
        graph, notes = both, [NOTE]
    notes += way.notes
    class_name = re.sub(r"\W", "_", name or type(model).__name__)
    infer(Program(graph, model, specs))
    _make_mutation_explicit(graph, model)
    for node in graph.nodes:  # else generated code would wrap the helpers again, under whatever names it has for them
        node.meta.pop("is_wrapped", None)
    tree = referenced_tree(model, graph)
    program = expand(Program(graph, tree, specs, class_name, tuple(notes), sized=way.sizes == "numbers"))
    call_layers(program, model)
    eliminate_dead_code(program.graph, program.root)
    return replace(program, root=referenced_tree(program.root, program.graph))


def _with_training(model: nn.Module, way: Way, evaluation: fx.Graph) -> tuple[fx.Graph | None, fx.Graph | None]:
    """Return one graph for both modes, if there can be one: of modes alike, or of one that only adds to the other."""
    try:
        training, _ = _trace_graph(model, [way], [], mode=True)
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
    model: nn.Module, ways: Iterable[Way], branched: list[str], *, mode: bool = False
) -> tuple[fx.Graph, Way]:
    """Trace as far as Python lets us; also return in which way."""
    failed: CaptureError | None = None
    asked = False
    for way in ways:
        if asked and way.sizes == "checked":
            continue  # it asked about sizes for more than to refuse some, and would again
        branched.clear()
        tracer = way.tracer(branched)
        try:
            graph = _run(model, tracer, branched, mode)
        except CompilerError:
            raise
        except Exception as error:
            failed = _capture_error(model, tracer, error)  # the last way goes furthest
            failed.__cause__ = error
            continue
        if isinstance(tracer, CheckedTracing):

            def trial(forced: Sequence[bool], way: Way = way) -> tuple[list[bool], bool]:
                return _trial(model, way, forced, mode)

            asked = not only_refusals([*tracer.answers.values()], trial)
            if asked:
                continue
        return graph, way
    assert failed is not None
    raise failed


def _trial(model: nn.Module, way: Way, forced: Sequence[bool], mode: bool) -> tuple[list[bool], bool]:
    """Trace with other answers; return all answers, and whether the model refused."""
    tracer = way.tracer(unseen := list[str](), forced)
    assert isinstance(tracer, CheckedTracing)
    try:
        _run(model, tracer, unseen, mode)
    except Exception as error:
        return [*tracer.answers.values()], tracer.refused(error)
    return [*tracer.answers.values()], False


def _run(model: nn.Module, tracer: fx.Tracer, branched: list[str], mode: bool) -> fx.Graph:
    """Trace, and take back what that does to the model, but for literal tensors, which fx stores there."""
    take_back, own = _remembered(model), set(model.__dict__)
    try:
        with training_flags(model, branched, mode), accepting_values(), own_stochastic_depth(model):
            return _with_plain_result(tracer.trace(model))
    finally:
        literals = {n: v for n, v in model.__dict__.items() if n not in own and isinstance(v, torch.Tensor)}
        take_back()
        model.__dict__.update(literals)


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
    ours = Path(__file__).parent
    own = [f for f in frames if not f.filename.startswith(library) and Path(f.filename).parent != ours]
    line = f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else "unknown line"
    first = (str(error).splitlines() or [""])[0].partition(". ")[0]  # the sentence; fx goes on with advice
    return UntraceableError(
        f"cannot trace {type(model).__name__}: {type(error).__name__}: {first}",
        where=f"{path or 'forward'} ({type(owner).__name__}), {line}",
        hint="make control flow independent of tensor values there, or take a submodule that has none; compile, "
        "verify, inspect and explain take what can be traced of it (in Python: secateur.prune_regions)",
    )
