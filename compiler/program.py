"""The unit every stage passes on: a graph, the module tree it refers to, and what its inputs look like."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import torch
from torch import fx, nn

from .functional import returned_in_evaluation

TRAINING: Final = "training"
"""Target of the ``get_attr`` node that reads the live train/eval flag."""

_MARK: Final = re.compile(r"^(\w+)( *:[^=\n]*)? = \w*returned_in_evaluation\((\w+)\)", re.MULTILINE)


@dataclass(frozen=True)
class InputSpec:
    """One positional input: its name in ``forward``, an example shape and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor value in the graph, for the example inputs."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Program:
    """A traced model.

    ``graph`` refers to submodules, parameters and buffers of ``root`` by their original qualified names. A program is a
    value: passes return a new one and never change the one they were given (its tensors may be shared with the model it
    was captured from).
    """

    graph: fx.Graph
    root: nn.Module
    """Owner of everything that the graph names. Only what the graph names counts as part of the program."""
    inputs: tuple[InputSpec, ...]
    name: str = "Model"
    """A class name for the emitted module."""
    notes: tuple[str, ...] = field(default=())
    """What capture had to decide on the user's behalf, in sentences."""
    sized: bool = False
    """Whether sizes are those of the example inputs, but for the batch: it means nothing for inputs of others."""

    _owners: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module], init=False, repr=False)

    @cached_property
    def module(self) -> fx.GraphModule:
        """The program as a normal, trainable module with the original state_dict names."""
        if any(node.target is returned_in_evaluation for node in self.graph.nodes):
            self.graph._codegen._body_transformer = _with_return
        module = fx.GraphModule(self.root, self.graph, class_name=self.name)
        for part in module.modules():
            if (
                part is module or type(part) is nn.Module
            ):  # leaves keep their own flag: a frozen batch norm stays frozen
                part.training = self.root.training
        for node in self.graph.nodes:  # which fx forgets
            if node.op == "get_attr" and not is_persistent(self.root, str(node.target)):
                owner, _, name = str(node.target).rpartition(".")
                submodule(module, owner)._non_persistent_buffers_set.add(name)
        return module

    def owner(self, path: str) -> nn.Module:
        """Return the submodule at a dotted ``path`` (the root for an empty one)."""
        found = self._owners.get(path)
        if found is None:
            found = self._owners[path] = submodule(self.root, path)
        return found

    def attribute(self, path: str) -> Any:
        """Return the parameter, buffer or plain attribute at a dotted path."""
        prefix, _, name = path.rpartition(".")
        return getattr(self.owner(prefix), name)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every (name, parameter or buffer) that the graph uses, each name once, in graph order."""
        seen: set[str] = set()
        for node in self.graph.nodes:
            if node.op == "call_module":
                module = self.owner(node.target)
                found: Sequence[tuple[str, torch.Tensor]] = [
                    *module.named_parameters(node.target),
                    *module.named_buffers(node.target),
                ]
            elif node.op == "get_attr" and isinstance(value := self.attribute(node.target), torch.Tensor):
                found = [(node.target, value)]
            else:
                continue
            for name, tensor in found:
                if name not in seen:
                    seen.add(name)
                    yield name, tensor


def _with_return(body: list[str]) -> list[str]:
    """Rewrite generated code: in evaluation mode the mark of :mod:`.auxiliary` is where ``forward`` returns."""
    return [_MARK.sub(r"if not self.training:\n    return \3\n\1 = \3", "".join(body))]


def submodule(root: nn.Module, path: str) -> nn.Module:
    """Return the submodule at a dotted path (the root for an empty one): ``get_submodule``, several times as fast.

    Raises:
        AttributeError: There is none.
    """
    found: nn.Module | None = root
    for name in path.split(".") if path else ():
        found = found._modules.get(name) if found is not None else None
    return found if found is not None else root.get_submodule(path)


def place(root: nn.Module, path: str, value: Any, *, persistent: bool = True) -> None:
    """Put a module, parameter, buffer or plain value at a dotted path, making the containers on the way."""
    *containers, name = path.split(".")
    for container in containers:
        child = root._modules.get(container)
        if child is None:
            child = nn.Module()
            child.training = root.training
            root.add_module(container, child)
        root = child
    if isinstance(value, nn.Module):
        root.add_module(name, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(name, value)
    elif isinstance(value, torch.Tensor):
        if name not in root._buffers:
            root.register_buffer(name, value, persistent=persistent)
    elif name != "training":
        setattr(root, name, value)


def reasons(output: fx.Node) -> Mapping[str, str]:
    """Return why what a program gives is read, by node, where more is known than that it is the output."""
    return output.meta.get("reasons", {})


def give_reasons(output: fx.Node, found: Mapping[str, str]) -> None:
    """Note for :func:`reasons`."""
    output.meta["reasons"] = dict(found)


def is_persistent(root: nn.Module, path: str) -> bool:
    """Tell whether a buffer belongs to the state_dict."""
    owner, _, name = path.rpartition(".")
    return name not in submodule(root, owner)._non_persistent_buffers_set


def referenced_tree(root: nn.Module, graph: fx.Graph) -> nn.Module:
    """Return a new module tree that holds what the graph names and nothing else; leaves and tensors are shared."""
    tree = nn.Module()
    tree.training = root.training
    done: set[str] = set()
    for node in graph.nodes:
        path = str(node.target)
        if node.op in ("call_module", "get_attr") and path not in done:
            done.add(path)
            owner, _, name = path.rpartition(".")
            value = getattr(submodule(root, owner), name)
            place(tree, path, value, persistent=node.op == "call_module" or is_persistent(root, path))
    return tree
