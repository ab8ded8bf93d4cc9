"""Regions, and joining their graphs to one program: see :mod:`.regions`."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from .contracts import contract_of
from .program import TRAINING, InputSpec, Program, TensorSpec, give_reasons, is_persistent, place
from .recording import Call, ClosedCall, Held, Place, Structure, Watched
from .shapes import infer

REGION: Final = "region"
"""Name under which a traced call holds its submodule."""


@dataclass(frozen=True, eq=False)
class Region:
    """One call of a submodule that was traced."""

    path: str
    """Of the submodule; empty for the model itself."""
    given: Structure
    gave: Structure
    inputs: tuple[str, ...]
    """Nodes of the program that stand for the tensors given."""
    outputs: tuple[str, ...]

    def run(self, module: nn.Module, tensors: Sequence[Any]) -> tuple[Any, ...]:
        """Call the submodule's own forward with tensors given one by one; returns those that it gives."""
        return call_flat(module, self.given, self.gave, tensors)


@dataclass(frozen=True)
class Border:
    """A tensor that leaves the regions: its channels stay."""

    source: str
    """Submodule (or parameter) that gives it."""
    node: str
    reason: str


@dataclass(frozen=True, eq=False)
class Regions:
    """What of a model can be traced, as one program."""

    program: Program
    regions: tuple[Region, ...]
    """In the order in which the model calls them."""
    borders: tuple[Border, ...]
    contracts: tuple[str, ...]
    """Submodules that were replaced by stand-ins."""
    outside: dict[str, str]
    """Submodules with parameters that are run by Python code, and why they could not be traced."""
    call: Call
    """How the model called its submodules."""


def call_flat(module: nn.Module, given: Structure, gave: Structure, tensors: Sequence[Any]) -> tuple[Any, ...]:
    """Call a module with the tensors given one by one; return those that it gives."""
    args, kwargs = given.filled(tensors)
    return gave.picked(module(*args, **kwargs))


def filled(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape with at least one sample: a detector may find no boxes."""
    return (max(shape[0], 1), *shape[1:]) if shape else shape


@dataclass(eq=False)
class _Value:
    """A tensor that a node of the program stands for."""

    held: Held
    node: fx.Node
    place: Place
    readers: int = 0
    reason: str = ""
    """Why its channels stay, if they do."""


@dataclass(eq=False)
class Joining:
    """Builds the program of all regions."""

    model: nn.Module
    root: Call
    watched: Watched
    trained: Watched | None
    traced: dict[int, Program]
    outside: dict[str, str]
    graph: fx.Graph = field(default_factory=fx.Graph)
    tree: nn.Module = field(default_factory=nn.Module)
    values: dict[int, _Value] = field(default_factory=dict[int, _Value])
    inputs: list[InputSpec] = field(default_factory=list[InputSpec])
    given: dict[tuple[int, int], fx.Node] = field(default_factory=dict[tuple[int, int], fx.Node])
    """Identity and version of a tensor that no region made -> its node."""
    own: dict[int, str] = field(init=False)
    """Identity of a parameter or buffer -> its name."""
    last_input: fx.Node | None = None
    placed: dict[str, Any] = field(default_factory=dict[str, Any])
    contracts: list[str] = field(default_factory=list[str])
    notes: dict[str, None] = field(default_factory=dict[str, None])
    sized: bool = False

    def __post_init__(self) -> None:
        named = (*self.model.named_buffers(), *self.model.named_parameters())
        self.own = {id(tensor): name for name, tensor in named}

    def run(self) -> Regions:
        """Return the regions with their program."""
        self.tree.training = self.model.training
        regions: list[Region] = []
        for event in self.watched.calls:
            if event.call.number in self.traced:
                regions.append(self._region(event, self.traced[event.call.number]))
            else:
                self._stand_in(event)
        borders = self._borders()
        output = self.graph.output(tuple(dict.fromkeys(self._node(border) for border in borders)))
        give_reasons(output, {border.node: border.reason for border in borders})
        name, notes = type(self.model).__name__, tuple(self.notes)
        program = Program(self.graph, self.tree, tuple(self.inputs), name, notes, sized=self.sized)
        infer(program)
        return Regions(program, tuple(regions), tuple(borders), tuple(self.contracts), self.outside, self.root)

    def _node(self, border: Border) -> fx.Node:
        return next(node for node in self.graph.nodes if node.name == border.node)

    # Regions

    def _region(self, event: ClosedCall, program: Program) -> Region:
        path = event.call.path
        assert event.call.gave is not None
        nodes = iter([self._read(held, path) for held in event.given])
        moved: dict[fx.Node, fx.Node] = {}
        result: tuple[Any, ...] = ()
        given: list[str] = []
        for node in program.graph.nodes:
            if node.op == "placeholder":
                moved[node] = next(nodes)
                given.append(moved[node].name)
            elif node.op == "output":
                result = fx.map_arg(node.args[0], lambda n: moved[n])
            else:
                moved[node] = self._copy(node, moved, program, path)
        for number, (held, node) in enumerate(zip(event.gave, result, strict=True)):
            self._gives(held, node, (path, number))
        self.sized |= program.sized
        self.notes |= dict.fromkeys(f"{path or 'the model'}: {note}" for note in program.notes)
        return Region(path, event.call.given, event.call.gave, tuple(given), tuple(node.name for node in result))

    def _copy(self, node: fx.Node, moved: dict[fx.Node, fx.Node], program: Program, path: str) -> fx.Node:
        new = self.graph.node_copy(node, lambda n: moved[n])
        if node.op in ("call_module", "get_attr") and node.target != TRAINING:
            old = str(node.target)
            value = program.owner(old) if node.op == "call_module" else program.attribute(old)
            new.target = self._free(_qualified(old, path), value)
            persistent = node.op == "call_module" or is_persistent(program.root, old)
            place(self.tree, new.target, value, persistent=persistent)
        stack = node.meta.get("nn_module_stack")
        if stack is not None:
            new.meta["nn_module_stack"] = {k: (_qualified(str(p), path), *more) for k, (p, *more) in stack.items()}
        return new

    def _free(self, target: str, value: Any) -> str:
        """Return a name that no other value has: what a trace made (constants) is called alike in every call."""
        number, name = 0, target
        while self.placed.setdefault(name, value) is not value:
            number += 1
            name = f"{target}_{number}"
        return name

    def _read(self, held: Held, reader: str) -> fx.Node:
        """Return the node for a tensor that a region is given: another's, or else an input."""
        value = self.values.get(id(held.tensor))
        if value is not None:
            value.readers += 1
            if value.held.version == held.version:
                return value.node
            value.reason = f"changed in place before {reader} reads it"
        key = id(held.tensor), held.version
        name = self.own.get(id(held.tensor))
        if name is not None:
            self.given[key] = self._attribute(name, held.tensor)
        elif key not in self.given:
            spec = TensorSpec(filled(tuple(held.tensor.shape)), held.tensor.dtype)
            self.given[key] = self._input(f"{reader}_input", spec)
        return self.given[key]

    def _attribute(self, name: str, tensor: torch.Tensor) -> fx.Node:
        place(self.tree, name, tensor, persistent=is_persistent(self.model, name))
        return self.graph.get_attr(name)

    def _input(self, name: str, spec: TensorSpec) -> fx.Node:
        before = self.graph.inserting_after(self.last_input) if self.last_input else self.graph.inserting_before(None)
        with before:
            node = self.graph.placeholder(re.sub(r"\W", "_", name).strip("_"))
        node.target = node.name
        self.last_input = node
        self.inputs.append(InputSpec(node.name, spec.shape, spec.dtype))
        return node

    def _gives(self, held: Held, node: fx.Node, place: Place) -> None:
        if id(held.tensor) not in self.values:  # a region may hand on what it was given
            self.values[id(held.tensor)] = _Value(held, node, place)

    # Contracts

    def _stand_in(self, event: ClosedCall) -> None:
        """Pool every feature map as a whole, and give each box the same, times a number of its own."""
        module, path = event.call.module, event.call.path
        contract = contract_of(module)
        assert contract is not None
        args, _ = event.call.given.filled(event.given)
        features: list[Held] = list(contract.features(module, args[0])) if args else []
        values = [self.values.get(id(held.tensor)) for held in event.given]
        pooled = [self.values.get(id(held.tensor)) for held in features]
        untouched = all(v is not None and v.held.version == h.version for v, h in zip(pooled, features, strict=True))
        if not pooled or not untouched or len(event.gave) != 1:
            for value in values:
                if value is not None:
                    value.readers += 1
                    value.reason = f"read by {path}, which pools something else too"
            return
        among = {id(held) for held in pytree.tree_leaves(args[0])}
        for value, held in zip(values, event.given, strict=True):
            if value is not None and id(held) not in among:
                value.reason = f"read by {path}, and no feature map"
        for value in pooled:
            if value is not None:
                value.readers += 1
        (result,) = event.gave
        dtype = result.tensor.dtype
        boxes = self._input(f"{path}_boxes", TensorSpec((max(len(result.tensor), 1), 1, 1, 1), dtype))
        size = contract.size(module)
        maps = [
            self.graph.call_function(F.adaptive_avg_pool2d, (value.node, size)) for value in pooled if value is not None
        ]
        total = maps[0]
        for other in maps[1:]:
            total = self.graph.call_function(operator.add, (total, other))
        mean = self.graph.call_function(torch.mean, (total, 0), {"keepdim": True})
        self._gives(result, self.graph.call_function(operator.mul, (mean, boxes)), (path, 0))
        self.contracts.append(path)

    # Borders

    def _borders(self) -> list[Border]:
        returned = {id(tensor) for tensor in self.watched.result}
        in_training = self._reasons_in_training()
        borders: list[Border] = []
        for identity, value in self.values.items():
            reason = value.reason
            if identity in self.watched.reads:
                reason = f"Python code reads it: {self.watched.reads[identity]}"
            elif identity in returned:
                reason = "the model returns it"
            elif not value.readers and not reason:
                reason = "no region reads it"
            reason = reason or in_training.get(value.place, "")
            if reason and value.node.op != "placeholder":
                borders.append(Border(value.place[0], value.node.name, reason))
        return [*borders, *self._borders_of_parameters()]

    def _reasons_in_training(self) -> dict[Place, str]:
        """Return why tensors stay since they are read in training, or go somewhere else there."""
        if self.trained is None:
            return {}
        found = {given: f"in training, Python code reads it: {who}" for given, who in self.trained.readers.items()}
        before = self.watched.flows
        for target, sources in self.trained.flows.items():
            usual = before.get(target, {None})
            for given in sources | usual if sources - usual else ():
                if given is not None:
                    found.setdefault(given, f"in training, {target[0]} is given something else")
        return found

    def _borders_of_parameters(self) -> list[Border]:
        """Weights of regions that Python code reads as well."""
        reads = {**(self.trained.reads if self.trained is not None else {}), **self.watched.reads}
        program = Program(self.graph, self.tree, ())
        found = [(name, tensor) for name, tensor in program.tensors() if id(tensor) in reads]
        return [
            Border(name, self._attribute(name, tensor).name, f"Python code reads it: {reads[id(tensor)]}")
            for name, tensor in found
        ]


def _qualified(target: str, path: str) -> str:
    """Return the name in the whole model of what is called ``target`` in the traced call of its submodule ``path``."""
    inside = target == REGION or target.startswith(f"{REGION}.")
    rest = target.removeprefix(REGION).removeprefix(".") if inside else target
    return ".".join(part for part in (path, rest) if part)
