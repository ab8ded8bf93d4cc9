"""Runs a program node by node on all calibration data at once, keeping only what is still to be read.

Layers that are refitted one after the other each need the inputs that the layers before them, refitted already, make.
Running the program again for every layer would cost the square of its depth; here every node runs once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...compiler.errors import CompilerError
from ...compiler.mutation import is_in_place, seen_elsewhere
from ...compiler.program import TRAINING, Program

Batch = tuple[Tensor, ...]


class Stepwise:
    """Values of a program's nodes, each computed when it is first asked for.

    Args:
        program: Run in evaluation mode; its layers may be replaced until the node that calls them has run.
        batches: Inputs.
        wanted: Nodes whose values will be taken: node -> how often. Only their ancestors are ever run, and a value is
            dropped as soon as all who read it have run and it was taken as often as that.
        prepare: Told of every node before it runs.

    Raises:
        CompilerError: The program overwrites a tensor that it reads under another name, so that the order of its
            operations means something.
    """

    def __init__(
        self,
        program: Program,
        batches: Sequence[Batch],
        wanted: Iterable[fx.Node],
        prepare: Callable[[fx.Node], None] = lambda node: None,
    ) -> None:
        self.program = program
        self._batches = batches
        self._prepare = prepare
        self._position = {node: i for i, node in enumerate(program.graph.nodes)}
        self._values: dict[fx.Node, list[Any]] = {}
        self._done: set[fx.Node] = set()
        takes = Counter(wanted)
        needed = self._ancestors(takes, set())
        self._left = Counter(takes)
        for node in needed:
            self._left.update(node.all_input_nodes)
            if seen_elsewhere(node, program.root):
                raise CompilerError(
                    "the program overwrites a tensor that it reads under another name: it cannot be run in pieces",
                    where=f"node {node.name}",
                    hint="write the operation out of place in the model",
                )
        self._placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]

    def take(self, node: fx.Node) -> list[Any]:
        """Return a node's value for every batch; counts as one of the times that it is wanted."""
        values = self.look(node)
        self._release(node)
        return values

    def look(self, node: fx.Node) -> list[Any]:
        """Return a node's value for every batch, to be asked for again."""
        for each in sorted(self._ancestors([node], self._done), key=self._position.__getitem__):
            if each not in self._done:  # preparing another may have run it
                self._run(each)
        return self._values[node]

    def _run(self, node: fx.Node) -> None:
        self._prepare(node)
        if node in self._done:
            return
        with torch.no_grad():
            self._values[node] = [self._call(node, number) for number in range(len(self._batches))]
        self._done.add(node)
        for read in node.all_input_nodes:
            self._release(read)

    def _call(self, node: fx.Node, batch: int) -> Any:
        if node.op == "placeholder":
            return self._batches[batch][self._placeholders.index(node)]
        given: Any = fx.map_arg((node.args, node.kwargs), lambda n: self._values[n][batch])
        return call(self.program, node, *given)

    def _release(self, node: fx.Node) -> None:
        self._left[node] -= 1
        if self._left[node] <= 0:
            self._values.pop(node, None)

    def _ancestors(self, nodes: Iterable[fx.Node], done: set[fx.Node]) -> set[fx.Node]:
        found: set[fx.Node] = set()
        stack = [node for node in nodes if node not in done]
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack += [read for read in node.all_input_nodes if read not in done]
        return found


def call(program: Program, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one node in evaluation mode; what it would overwrite stays as it is."""
    if node.op == "get_attr":
        return False if node.target == TRAINING else program.attribute(str(node.target))
    if node.op == "output":
        return args[0]
    overwrites = bool(args) and is_in_place(node, program.root)  # what others may still want
    if overwrites and node.op != "call_module":
        args = (args[0].clone(), *args[1:])
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "call_function":
        assert callable(node.target)
        return node.target(*args, **kwargs)
    layer: Any = program.owner(str(node.target))
    training = layer.training
    layer.eval()
    if overwrites:
        layer.inplace = False
    try:
        return layer(*args, **kwargs)
    finally:
        layer.train(training)
        if overwrites:
            layer.inplace = True
