"""A program being rewritten: a copy of its graph over a module tree of its own; tensors are shared until replaced.

Passes that change a few nodes or layers start from an :class:`Edit`, change it, and ask for the finished program.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from ..compiler.capture import eliminate_dead_code
from ..compiler.ops import Call, normalise
from ..compiler.program import Program, place, referenced_tree
from ..compiler.shapes import infer, infer_node


class Edit:
    """Copies the program, so that nothing that is done here reaches the one it was given."""

    def __init__(self, program: Program) -> None:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(program.graph, copies))
        self.program = replace(program, graph=graph, root=referenced_tree(program.root, program.graph))
        self.graph = graph
        self._readers = _readers(self.program)
        self._dtypes: dict[str, torch.dtype] = {}

    def call(self, node: fx.Node) -> Call | None:
        """Return the normalised view of a node, ``None`` if it calls nothing."""
        return normalise(self.program, node) if node.op.startswith("call_") else None

    def is_shared(self, call: Call) -> bool:
        """Tell whether a layer is called more than once, or any of its tensors is read elsewhere too."""
        if call.module is None:
            return True
        return any(self._readers[id(t)] > 1 for t in _tensors(call.module)) or self._readers[id(call.module)] > 1

    def set_layer(self, path: str, layer: nn.Module) -> None:
        """Put another layer in the place of the one at ``path``."""
        place(self.program.root, path, layer)
        self.program._owners.pop(path, None)
        for thing in (layer, *_tensors(layer)):
            self._readers[id(thing)] = max(self._readers[id(thing)], 1)

    def set_parameters(self, path: str, values: Mapping[str, torch.Tensor]) -> None:
        """Give the layer at ``path`` other parameters: a new layer of the same kind, the original stays as it is.

        Values in float64 stay so until the edit is finished, so that what is changed twice is rounded once; then they
        get the dtype of the layer's first parameter, whose gradient flag they have too.
        """
        old = self.program.owner(path)
        like = next(old.parameters())
        self._dtypes.setdefault(path, like.dtype)
        layer = copy_layer(old)
        for name, value in values.items():
            layer._parameters[name] = nn.Parameter(value.to(like.device), requires_grad=like.requires_grad)
        self.set_layer(path, layer)

    def settle(self, made: fx.Node, like: fx.Node) -> fx.Node:
        """Give a new node its shape, and the block of another node, where a reader will look for it."""
        stack = dict(like.meta.get("nn_module_stack", {}))
        if like.op == "call_module":  # the layer itself is no block
            stack = {key: entry for key, entry in stack.items() if entry[0] != like.target}
        made.meta = {"nn_module_stack": stack} if stack else {}
        infer_node(self.program, made)
        return made

    def replace(self, node: fx.Node, by: Any) -> None:
        """Let all readers of a node read another one, and erase it."""
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)

    def finish(self, *notes: str) -> Program:
        """Return the program: dead code and unused layers gone, shapes inferred."""
        for path, dtype in self._dtypes.items():
            parameters = self.program.owner(path)._parameters
            for name, value in parameters.items():
                if value is not None and value.dtype != dtype:
                    parameters[name] = nn.Parameter(value.detach().to(dtype), requires_grad=value.requires_grad)
        eliminate_dead_code(self.graph, self.program.root)
        root = referenced_tree(self.program.root, self.graph)
        added = tuple(note for note in notes if note not in self.program.notes)
        finished = replace(self.program, root=root, notes=(*self.program.notes, *added))
        infer(finished)
        return finished


def copy_layer(layer: nn.Module) -> nn.Module:
    """Return a copy with registries of its own, whose tensors and inner modules are shared."""
    copy = object.__new__(type(layer))
    copy.__dict__.update(layer.__dict__)
    for registry in ("_parameters", "_buffers", "_modules"):
        copy.__dict__[registry] = dict(layer.__dict__[registry])
    return copy


def _tensors(layer: nn.Module) -> list[torch.Tensor]:
    return [*layer.parameters(), *layer.buffers()]


def _readers(program: Program) -> Counter[int]:
    """Count how many nodes read each layer and each tensor, by identity."""
    found: Counter[int] = Counter()
    for node in program.graph.nodes:
        if node.op == "call_module":
            layer = program.owner(str(node.target))
            found.update(map(id, [layer, *_tensors(layer)]))
        elif node.op == "get_attr":
            found[id(program.attribute(str(node.target)))] += 1
    return found
