"""One graph for both modes, where training and evaluation differ in flags only.

    captured for evaluation     batch_norm(x, ..., training=False)
    captured for training       batch_norm(x, ..., training=True)
    both                        batch_norm(x, ..., training=self.training)

    attention(q, k, v, dropout_p=0.0)  and  (..., dropout_p=0.1)    ->    attention(..., dropout_p=self.training * 0.1)

Code that branches on ``self.training`` often comes to the same in both modes but for such an argument, or for what no
graph holds (a count of batches, a cache). Both captures are compared call by call; where only flags differ, the flag of
the module stands in their place. What is computed in one mode alone is another matter: see :mod:`.auxiliary`.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from .program import TRAINING, submodule


class _DifferError(Exception):
    """The modes compute different things."""


def merge(evaluation: fx.Graph, training: fx.Graph, root: nn.Module) -> fx.Graph | None:
    """Return one graph for both modes; the given ones are not changed, but for calls that nobody needs.

    Args:
        evaluation: Captured with every training flag false.
        training: Captured with every training flag true.
        root: The model.

    Returns:
        The graph, ``None`` if the modes do not make the same calls in the same order.
    """
    for graph in (evaluation, training):
        _drop_unread(graph)
    mine, theirs = ([node for node in graph.nodes if not _is_flag(node)] for graph in (evaluation, training))
    if len(mine) != len(theirs):
        return None
    merging = _Merging(root)
    try:
        for a, b in zip(mine, theirs, strict=True):
            merging.take(a, b)
    except _DifferError:
        return None
    return merging.graph


def _is_flag(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "get_attr" and argument.target == TRAINING


def _drop_unread(graph: fx.Graph) -> None:
    """Erase checks, questions whose answers nobody reads, and counts: buffers that are changed and not read."""
    for node in reversed(graph.nodes):
        if node.users or node.op in ("placeholder", "output"):
            continue
        of = node.args[0] if node.args else None
        counts = isinstance(of, fx.Node) and of.op == "get_attr" and len(of.users) == 1 and node.target == "add_"
        if node.op == "get_attr" or node.target in (getattr, torch._assert, "size", "dim", "numel") or counts:
            graph.erase_node(node)


class _Merging:
    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.graph = fx.Graph()
        self.graph._tracer_cls = fx.Tracer
        self.made: dict[fx.Node, fx.Node] = {}
        """Nodes of both graphs -> those of the one."""

    def take(self, a: fx.Node, b: fx.Node) -> None:
        """Copy a call of the one graph that is the next of the other graph, too.

        Raises:
            _DifferError: It is not.
        """
        if a.op != b.op or not (a.target == b.target or self._same_constant(a, b)):
            raise _DifferError
        args, kwargs = self._joined(a.args, b.args), self._joined(dict(a.kwargs), dict(b.kwargs))
        made = self.graph.create_node(a.op, a.target, args, kwargs, a.name, a.type)
        made.meta = dict(a.meta)
        self.made[a] = self.made[b] = made

    def _same_constant(self, a: fx.Node, b: fx.Node) -> bool:
        if a.op != "get_attr":
            return False
        one, other = (submodule(self.root, str(n.target).rpartition(".")[0]) for n in (a, b))
        x, y = getattr(one, str(a.target).rpartition(".")[2]), getattr(other, str(b.target).rpartition(".")[2])
        tensors = isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)
        return tensors and x.dtype == y.dtype and torch.equal(x, y)

    def _flag(self, *, training: bool) -> fx.Node:
        """Return what is true in training, or in evaluation."""
        flag = self.graph.get_attr(TRAINING)
        return flag if training else self.graph.call_function(operator.not_, (flag,))

    def _joined(self, x: Any, y: Any) -> Any:
        x, y = False if _is_flag(x) else x, True if _is_flag(y) else y
        if isinstance(x, fx.Node):
            if not isinstance(y, fx.Node) or self.made[x] is not self.made[y]:
                raise _DifferError
            return self.made[x]
        if type(x) is not type(y):
            raise _DifferError
        if isinstance(x, (tuple, list)):
            if len(x) != len(y):
                raise _DifferError
            parts = [self._joined(a, b) for a, b in zip(x, y, strict=True)]
            return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
        if isinstance(x, dict):
            if x.keys() != y.keys():
                raise _DifferError
            return {key: self._joined(x[key], y[key]) for key in x}
        if isinstance(x, slice):
            return slice(*(self._joined(getattr(x, n), getattr(y, n)) for n in ("start", "stop", "step")))
        if isinstance(x, bool) and x is not y:
            return self._flag(training=y)
        if isinstance(x, (int, float)) and x != y and 0 in (x, y):
            return self.graph.call_function(operator.mul, (self._flag(training=x == 0), x or y))
        if x is not y and x != y:
            raise _DifferError
        return x
