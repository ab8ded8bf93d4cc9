"""The channel dependencies as a graph of layers: who reads whose channels, and who is coupled with whom.

Nodes are layers (and bare parameters): ``kind`` ("conv", "batch_norm", "parameter", ...), ``channels`` that they give,
``group`` of those channels, ``prunable`` (how many of them may go). Edges have a ``kind``:

* ``reads``: the target reads (or normalises) channels that the source gives; ``node`` is where.
* ``coupled``: channels of both live and die together; ``node`` and ``reason`` say where and why.
"""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx
import numpy as np
import numpy.typing as npt
from torch import fx

from .dependency import ChannelDependencies, ParamSlice, Role
from .program import Program

Ints = npt.NDArray[np.int64]


class Layers:
    """What the slices of an analysis say of each layer, and which layer gives each atom."""

    def __init__(self, deps: ChannelDependencies, program: Program) -> None:
        self.deps = deps
        called = {node.name: str(node.target) for node in program.graph.nodes if node.op == "call_module"}
        self._modules = set(called.values())
        self.kind: dict[str, str] = {}
        """Layer -> operation key, in graph order."""
        self.node: dict[str, str] = {}
        """Layer -> the first node that calls it."""
        self._gives: dict[str, list[Ints]] = {}
        self._reads: dict[str, list[Ints]] = {}
        self._carries: dict[str, list[Ints]] = {}
        elsewhere: dict[str, list[Ints]] = {}
        """What functions give by a layer's weight, such as its transpose in a tied decoder."""
        places = {Role.PRODUCES: self._gives, Role.CONSUMES: self._reads, Role.CARRIES: self._carries}
        produced = {use.name for use in deps.slices if use.role is Role.PRODUCES}
        for use in deps.slices:
            layer = self.layer_of(use.name)
            self.node.setdefault(layer, use.node)
            born_here = use.role is Role.CARRIES and use.kind == "get_attr" and use.name not in produced
            if use.kind != "get_attr" or layer not in self.kind:
                self.kind[layer] = "parameter" if use.kind == "get_attr" else use.kind
            place = self._gives if born_here else places[use.role]
            if place is self._gives and layer in self._modules and called.get(use.node) != layer:
                place = elsewhere
            place.setdefault(layer, []).append(use.atoms.ravel())
        self.names = tuple(self.kind)
        self.owner: Ints = np.full(len(deps.class_of), -1, dtype=np.int64)
        """Atom -> index in ``names`` of the layer that gives it; -1 where none does."""
        for index, layer in enumerate(self.names):
            for atoms in (*elsewhere.get(layer, []), *self._gives.get(layer, [])):
                self.owner[atoms] = index

    def layer_of(self, tensor: str) -> str:
        """Return the layer that a parameter belongs to: a called module, else the parameter itself."""
        owner = tensor.rpartition(".")[0]
        return owner if owner in self._modules else tensor

    def gives(self, layer: str) -> Ints:
        """Return the atoms that a layer gives; those that it passes on if it gives none."""
        return _joined(self._gives.get(layer) or self._carries.get(layer) or self._reads.get(layer))

    def takes(self, layer: str) -> Ints:
        """Return the atoms that a layer reads or, if it reads none, passes on."""
        taken = self._reads.get(layer)
        return _joined(taken if taken or self._gives.get(layer) else self._carries.get(layer))

    def classes(self, atoms: Ints) -> Ints:
        """Return the classes of some atoms, each once."""
        return np.unique(self.deps.class_of[atoms])


def _joined(arrays: list[Ints] | None) -> Ints:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)


def build(deps: ChannelDependencies, program: Program) -> nx.MultiDiGraph[str]:
    """Return the graph of layers; edges are keyed by their kind."""
    layers = Layers(deps, program)
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph(name=program.name)
    pinned = _pinned(deps)
    groups = {int(c): group.name for group in deps.groups for c in group.classes}
    for layer in layers.names:
        given = layers.classes(layers.gives(layer))
        graph.add_node(
            layer,
            kind=layers.kind[layer],
            channels=len(given),
            prunable=int((~pinned[given]).sum()),
            group=groups.get(int(given[0]), "") if len(given) else "",
        )
    for source, target, node, channels in reads(layers, program):
        graph.add_edge(source, target, key="reads", kind="reads", node=node, channels=channels)
    for source, target, node, reason, channels in _couplings(layers):
        if not graph.has_edge(source, target, "coupled"):
            graph.add_edge(source, target, key="coupled", kind="coupled", node=node, reason=reason, channels=channels)
    return graph


def _pinned(deps: ChannelDependencies) -> npt.NDArray[np.bool_]:
    count = int(deps.class_of.max()) + 1 if len(deps.class_of) else 0
    pinned = np.zeros(count, dtype=np.bool_)
    for pin in deps.pins:
        pinned[deps.class_of[pin.atoms]] = True
    return pinned


def reads(layers: Layers, program: Program) -> Iterable[tuple[str, str, str, int]]:
    """Yield (giver, reader, node, channels); what a layer gives passes through everything that gives nothing new."""
    uses: dict[str, list[ParamSlice]] = {}
    for use in layers.deps.slices:
        uses.setdefault(use.node, []).append(use)
    reach: dict[fx.Node, dict[str, None]] = {}
    for node in program.graph.nodes:
        arriving = {layer: None for argument in node.all_input_nodes for layer in reach.get(argument, {})}
        mine = uses.get(node.name, [])
        here = {layers.layer_of(use.name): None for use in mine}
        for target in here:
            taken = layers.classes(layers.takes(target))
            for source in arriving:
                if source != target:
                    shared = np.intersect1d(layers.classes(layers.gives(source)), taken, assume_unique=True)
                    if len(shared):
                        yield source, target, node.name, len(shared)
        gives = {layers.layer_of(use.name): None for use in mine if use.role is Role.PRODUCES}
        if not gives and node.op == "get_attr":
            gives = here
        reach[node] = gives or arriving


def _couplings(layers: Layers) -> Iterable[tuple[str, str, str, str, int]]:
    for tie in layers.deps.ties:
        a, b = layers.owner[tie.a], layers.owner[tie.b]
        inside = (a >= 0) & (b >= 0) & (a != b)
        pairs, counts = np.unique(np.stack([a[inside], b[inside]]), axis=1, return_counts=True)
        for (first, second), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
            yield layers.names[min(first, second)], layers.names[max(first, second)], tie.node, tie.reason, count
