"""Letting a submodule run its part of a rewritten program in place of its own code.

Its class becomes a subclass with another ``forward``, so that whoever asks finds the class, the methods and the
attributes that were there. Layers that the program calls no more go. Such a module can be copied, trained, traced and
saved as a ``state_dict``; pickled it cannot be, since its class has no module to be found in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from torch import fx, nn

from ...compiler.errors import CompilerError
from ...compiler.program import TRAINING, Program, is_persistent, place, submodule
from ...compiler.recording import Structure
from ...compiler.regions import Region

_OWN: Final = "own_forward"


@dataclass(frozen=True, eq=False)
class GraphCode:
    """What a submodule runs in place of its own code."""

    path: str
    graph: fx.Graph
    """Its names are those of the submodule."""
    given: Structure
    gave: Structure
    outputs: tuple[str, ...]


def run_graph(model: nn.Module, region: Region, original: Program, compact: Program) -> GraphCode:
    """Change a submodule of ``model`` so that it runs its part of ``compact``.

    Args:
        model: Holds the layers of ``compact`` already; it is changed.
        region: The submodule's only call.
        original: The program of all regions as captured.
        compact: What became of it.

    Raises:
        CompilerError: Its part of the program cannot be told from the others'.
    """
    module = model.get_submodule(region.path)
    own = type(module)
    prefix = f"{region.path}." if region.path else ""
    graph = _part(compact.graph, region)
    parts: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr") or node.target == TRAINING:
            continue
        path = str(node.target)
        value = compact.owner(path) if node.op == "call_module" else compact.attribute(path)
        if path == region.path:  # the region is one layer
            node.target, value = _OWN, nn.Identity()
        else:
            node.target = path.removeprefix(prefix) if path.startswith(prefix) else path.replace(".", "_")
            if not _has(module, node.target):  # made by a pass
                persistent = node.op == "call_module" or is_persistent(compact.root, path)
                place(module, node.target, value, persistent=persistent)
        parts[node.target] = value
    for path in _called(original) - _called(compact):
        if path.startswith(prefix):
            owner, _, name = path.rpartition(".")
            submodule(model, owner)._modules.pop(name, None)
    code: Callable[..., Any] = type(fx.GraphModule({**parts, TRAINING: False}, graph)).forward
    members = {"forward": _forward(code, region.given, region.gave), _OWN: own.forward}
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__}
    module.__class__ = type(own.__name__, (own,), {**members, **names})
    return GraphCode(region.path, graph, region.given, region.gave, region.outputs)


def _forward(code: Callable[..., Any], given: Structure, gave: Structure) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; everything but tensors has to be what it was when the graph was captured."""
        call = args, kwargs
        for captured, value in given.differences(call):
            raise ValueError(f"{type(self).__name__} was captured for {captured!r}, and is given {value!r}")
        return gave.filled(code(self, *given.picked(call)))

    return forward


def _part(graph: fx.Graph, region: Region) -> fx.Graph:
    """Return the nodes between what a region is given and what it gives, as a graph of its own."""
    named = {node.name: node for node in graph.nodes}
    missing = [name for name in (*region.inputs, *region.outputs) if name not in named]
    if missing:
        raise _inseparable(region, f"{missing[0]} is gone")
    part = fx.Graph()
    moved: dict[fx.Node, fx.Node] = {}
    arguments: list[fx.Node] = []
    for name in region.inputs:
        argument = part.placeholder(f"input_{len(arguments)}")
        moved.setdefault(named[name], argument)
        arguments.append(argument)
    needed: set[fx.Node] = set()
    waiting = [named[name] for name in region.outputs]
    while waiting:
        node = waiting.pop()
        if node in moved or node in needed:
            continue
        if node.op == "placeholder":
            raise _inseparable(region, f"it reads {node.name}")
        needed.add(node)
        waiting += node.all_input_nodes
    for node in graph.nodes:
        if node in needed:
            moved[node] = part.node_copy(node, lambda n: moved[n])
    part.output(tuple(moved[named[name]] for name in region.outputs))
    return part


def _inseparable(region: Region, why: str) -> CompilerError:
    return CompilerError(f"{region.path or 'the model'} cannot run its part of the program: {why}")


def _called(program: Program) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_module"}


def _has(module: nn.Module, path: str) -> bool:
    owner, _, name = path.rpartition(".")
    try:
        getattr(module.get_submodule(owner), name)
    except AttributeError:
        return False
    return True
