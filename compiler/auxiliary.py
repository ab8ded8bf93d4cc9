"""What a model computes in training only, on top of its answer: auxiliary heads.

    out = body(x)                                   out = body(x)
    if self.training:                               answer = returned_in_evaluation(out)
        return out, head(y)            ->           a = head(y)
    return out                                      return answer, a

One graph says both. Whoever reads it as a graph (the analysis, the passes, the proof) sees all of it; the module made
of it returns at the mark where its own flag says evaluation, and so never computes the heads there.

Szegedy et al., Going Deeper with Convolutions, CVPR 2015, section 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from .functional import returned_in_evaluation
from .mutation import is_in_place
from .program import TRAINING, Program

NOTE: Final = "what is computed in training only (auxiliary heads) is part of the model, but not of its MACs"
"""Said of every program that holds some."""


def answer_of(graph: fx.Graph) -> fx.Node | None:
    """Return the mark behind which only training goes on; ``None`` for a model that does the same in both modes."""
    return next((node for node in graph.nodes if node.target is returned_in_evaluation), None)


def in_evaluation(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield what is computed in evaluation mode, in order."""
    for node in graph.nodes:
        if node.target is returned_in_evaluation:
            return
        yield node


def join(evaluation: fx.Graph, training: fx.Graph, root: nn.Module) -> fx.Graph | None:
    """Return one graph for both modes, if training only adds to what evaluation computes; the graphs are not changed.

    Args:
        evaluation: Captured with every training flag false.
        training: Captured with every training flag true; it returns several values, one of them the answer.
        root: The model.

    Returns:
        The training graph, its nodes reordered and the mark put in; ``None`` if the answer is not computed in the same
        way, or if what training adds reads a tensor that is later overwritten.
    """
    answer, given = _result(evaluation), _result(training)
    if not isinstance(answer, fx.Node) or not isinstance(given, (tuple, list)):
        return None
    numbers = _Numbers()
    wanted = numbers.of(evaluation)[answer]
    found = numbers.of(training)
    place = next((i for i, v in enumerate(given) if isinstance(v, fx.Node) and found[v] == wanted), None)
    if place is None:
        return None
    needed = _behind(given[place], training, root)
    added = [n for n in training.nodes if n.op not in ("placeholder", "output") and n not in needed]
    if not added or _overwritten(added, training, root):
        return None
    return _reordered(training, place, needed, added)


def without_training(program: Program) -> Program:
    """Return the program without what only training computes; it shares everything else. The program is not changed."""
    if answer_of(program.graph) is None:
        return program
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    result: Any = None
    for node in program.graph.nodes:
        if node.target is returned_in_evaluation:
            result = copied[node.args[0]]
            break
        copied[node] = graph.node_copy(node, lambda n: copied[n])
        copied[node].meta = dict(node.meta)
    end = graph.output(result)
    end.meta = dict(next(iter(reversed(program.graph.nodes))).meta)
    end.meta.pop("secateur_value", None)
    return replace(program, graph=graph, notes=tuple(note for note in program.notes if note != NOTE))


def comparable(module: nn.Module, inputs: Sequence[Tensor], original: Program, expected: Any) -> tuple[Any, Any]:
    """Return what a module and its original give that can be compared.

    Args:
        module: In evaluation mode; see :func:`as_graph`.
        inputs: One tensor per input.
        original: What it was made of.
        expected: What the original's graph gives for these inputs, auxiliary heads included.
    """
    if answer_of(original.graph) is None:
        return module(*inputs), expected
    if isinstance(module, fx.GraphModule) and answer_of(module.graph) is not None:
        return _Evaluation(module).run(*inputs), expected
    place = next(i for i, v in enumerate(_result(original.graph)) if v is answer_of(original.graph))
    return module(*inputs), expected[place]


def as_graph(module: nn.Module, original: Program) -> nn.Module:
    """Return a module of which auxiliary heads can be run in evaluation mode, if the original has any."""
    if answer_of(original.graph) is None or isinstance(module, fx.GraphModule):
        return module
    from .capture import trace

    return trace(module, [torch.zeros(spec.shape) for spec in original.inputs]).module.eval()


class _Evaluation(fx.Interpreter):
    """Runs all of a graph, its layers in evaluation mode."""

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return False if target == TRAINING else super().get_attr(target, args, kwargs)


class _Numbers:
    """Numbers values so that equal numbers mean: computed in the same way, from the same inputs and parameters."""

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}

    def of(self, graph: fx.Graph) -> dict[fx.Node, int]:
        """Return the number of every node. Calls that look alike differ by how many came before: dropout is random."""
        numbers: dict[fx.Node, int] = {}
        seen: dict[Any, int] = {}
        for node in graph.nodes:
            arguments = map_arg((node.args, node.kwargs), lambda n: cast("Any", _Ref(numbers[n])))
            key = (node.op, str(node.target) if isinstance(node.target, str) else node.target, repr(arguments))
            seen[key] = seen.get(key, -1) + 1
            numbers[node] = self.known.setdefault((*key, seen[key]), len(self.known))
        return numbers


class _Ref:
    """Stands for a value among arguments."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"%{self.number}"


def _result(graph: fx.Graph) -> Any:
    return next(iter(reversed(graph.nodes))).args[0]


def _behind(answer: fx.Node, graph: fx.Graph, root: nn.Module) -> set[fx.Node]:
    """Return what an answer is computed from, and what overwrites any of it."""
    needed: set[fx.Node] = set()
    stack = [answer]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack += node.all_input_nodes
            stack += [user for user in node.users if is_in_place(user, root) and user.args[0] is node]
    return needed


def _overwritten(added: Sequence[fx.Node], graph: fx.Graph, root: nn.Module) -> bool:
    """Tell whether anything that is to move behind the answer reads what an earlier reader's successor overwrites."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    moved = set(added)
    for node in graph.nodes:
        if node in moved or node.op in ("placeholder", "output") or not is_in_place(node, root):
            continue
        target = node.args[0]
        if isinstance(target, fx.Node) and any(u in moved and place[u] < place[node] for u in target.users):
            return True
    return False


def _reordered(graph: fx.Graph, place: int, needed: set[fx.Node], added: Sequence[fx.Node]) -> fx.Graph:
    joined = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or node in needed:
            copied[node] = joined.node_copy(node, lambda n: copied[n])
    result = _result(graph)
    mark = joined.call_function(returned_in_evaluation, (copied[result[place]],))
    for node in added:
        copied[node] = joined.node_copy(node, lambda n: copied[n])
    parts = [mark if i == place else map_arg(part, lambda n: copied[n]) for i, part in enumerate(result)]
    joined.output(type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts))
    return joined
