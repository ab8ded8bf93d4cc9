"""Layers that could do without some of the channels that others go on reading: where to cut, and whether it pays.

    y = W f(x), x read elsewhere too   ->   y = W[:, S] f(x[S])      f: what is between, channel by channel

The *cut* x[S] is placed in front of f if that is not larger than what is behind it, so that norms and activations of
channels that nobody needs are saved too, and in front of a concatenation, which copies anyway. It is a slice where the
channels of x can be put in an order in which S stands together (:mod:`.subsets`), else a gather. Wan et al., UPSCALE:
Unconstrained Channel Pruning, ICML 2023.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from ...compiler.analysis import analyze
from ...compiler.cost import batch_of, weighted_calls
from ...compiler.dependency import ChannelDependencies, Role
from ...compiler.labels import ChannelLabels
from ...compiler.ops import Call, normalise
from ...compiler.program import Program
from ...compiler.shapes import concrete, is_tensor, set_value, shape_of, value_of

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

GATHERED: Final = 32
"""MACs in the time that it takes to copy one element channel by channel."""
MAIN: Final = 0.9
"""A layer with more than this share of all MACs that read a tensor is as good as its only reader."""


@dataclass(frozen=True, eq=False)
class Site:
    """A layer that reads through cuts of its own."""

    layer: str
    cuts: tuple[fx.Node, ...]
    sizes: tuple[int, ...]
    """Per cut: elements per channel and sample."""
    outputs: Ints
    """Classes of the layer's output channels."""
    macs: int
    """Per sample, input channel and output channel."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A program with cuts that change nothing as yet, and what is known of it."""

    program: Program
    deps: ChannelDependencies
    sites: tuple[Site, ...]


def open_inputs(program: Program, deps: ChannelDependencies, *, everywhere: bool) -> Opened:
    """Cut in front of layers that share what they read.

    Args:
        program: Stays as it is.
        deps: Its analysis.
        everywhere: Also where a copy costs more than half of the layer's MACs, so that it could hardly pay.
    """
    refused: set[str] = set()
    while True:
        wanted = [found for found in _sites(program, deps, everywhere) if found[0].node.name not in refused]
        copy, sites = _cut(program, deps, wanted)
        cuts = [cut for site in sites for cut in site.cuts]
        found = analyze(copy, cuts, whole_cells=deps.whole_cells) if sites else deps
        entangled = {name for site, name in sites.items() if not _is_free(site, found)}
        if not entangled:
            return Opened(copy if sites else program, found, tuple(sites))
        refused |= entangled


def _sites(program: Program, deps: ChannelDependencies, everywhere: bool) -> Iterator[tuple[Call, int, list[Edge]]]:
    """Yield layers that share their input, their MACs, and the edges to cut."""
    used = Uses(program, deps)
    produced = used.mask([g.classes for g in deps.groups if g.layers])
    names = [use.name for use in deps.slices if use.role is Role.CONSUMES]
    for call, positions in weighted_calls(program):
        axis = _input_axis(call)
        classes = _vector(deps, call.input, axis)
        shared = names.count(f"{call.owner}.weight") > 1 or f"{call.owner}.weight" in deps.shared
        if classes is None or call.module is None or shared or _groups(call) > 1 or not produced[classes].all():
            continue
        macs = call["weight"].numel() * positions // batch_of(program)
        alone = used.readers[classes].max() < 2 and not used.pinned[classes].any()
        if alone or (not everywhere and macs > MAIN * used.macs[classes].sum() and not used.pinned[classes].any()):
            continue
        edges = list(_edges(program, deps, call.input, call.node, axis))
        elements = sum(math.prod(shape_of(source)) for source, _, _ in edges) // batch_of(program)
        if everywhere or macs >= GATHERED * elements:
            yield call, macs, edges


Edge = tuple[fx.Node, fx.Node, int]
"""A tensor, one of its readers, and the axis of the channels."""


def _edges(program: Program, deps: ChannelDependencies, source: fx.Node, reader: fx.Node, axis: int) -> Iterator[Edge]:
    """Yield the places to cut, as far up as only this reader is fed from there."""
    while len(source.users) == 1 and source.op.startswith("call_") and source.name not in deps.norms:
        tensors = [n for n in source.all_input_nodes if is_tensor(n) and n.op != "get_attr"]
        call = normalise(program, source)
        joins = call.key == "cat" and concrete(call["dim"]) % len(shape_of(source)) == axis
        if joins and all(_vector(deps, tensor, axis) is not None for tensor in tensors):
            for tensor in dict.fromkeys(tensors):
                yield from _edges(program, deps, tensor, source, axis)
            return
        if len(tensors) != 1 or math.prod(shape_of(tensors[0])) > math.prod(shape_of(source)):
            break
        behind, before = _vector(deps, source, axis), _only_vector(deps, tensors[0])
        if behind is None or before is None or not np.array_equal(behind, before[1]):
            break
        source, reader, axis = tensors[0], source, before[0]
    yield source, reader, axis


def _cut(
    program: Program, deps: ChannelDependencies, wanted: Sequence[tuple[Call, int, list[Edge]]]
) -> tuple[Program, dict[Site, str]]:
    """Return a copy with the cuts, and the name of the node of every site."""
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, new)).meta = dict(next(iter(reversed(program.graph.nodes))).meta)
    copy = replace(program, graph=graph)
    sites: dict[Site, str] = {}
    for call, macs, edges in wanted:
        cuts: list[fx.Node] = []
        for source, reader, axis in edges:
            with graph.inserting_before(new[reader]):
                size = shape_of(source)[axis]
                cut = graph.call_function(torch.narrow, (new[source], axis, 0, size))
            stack = dict(reader.meta.get("nn_module_stack", {}))
            cut.meta = {"nn_module_stack": {k: v for k, v in stack.items() if v[0] != reader.target}}
            set_value(cut, value_of(source))
            new[reader].replace_input_with(new[source], cut)
            cuts.append(cut)
        inputs = shape_of(call.input)[_input_axis(call)]
        outputs = _vector(deps, call.node, _input_axis(call))
        per_channel = tuple(math.prod(shape_of(s)) // shape_of(s)[axis] // batch_of(program) for s, _, axis in edges)
        rows = outputs if outputs is not None else np.empty(0, dtype=np.int64)
        site = Site(call.owner, tuple(cuts), per_channel, rows, macs // inputs // call["weight"].shape[0])
        sites[site] = call.node.name
    return copy, sites


def _is_free(site: Site, deps: ChannelDependencies) -> bool:
    """Tell whether what is behind the cuts is tied to nothing else."""
    if any(cut not in deps.cuts for cut in site.cuts):
        return False
    inner = np.concatenate([deps.class_of[deps.cuts[cut].atoms] for cut in site.cuts])
    outer = np.concatenate([deps.class_of[cut.source] for cut in deps.cuts.values()])
    bound = [deps.class_of[b.cells.ravel()] for b in deps.balances if b.cells.shape[1] > 1]
    return not np.isin(inner, np.concatenate([outer, *bound])).any()


class Uses:
    """Who uses channels up, class by class."""

    def __init__(self, program: Program, deps: ChannelDependencies) -> None:
        self.count = int(deps.class_of.max()) + 1 if len(deps.class_of) else 0
        self.pinned = self.mask([deps.class_of[pin.atoms] for pin in deps.pins])
        self.macs: Floats = np.zeros(self.count)
        """Of the layers that read a class, shared among the classes that each reads."""
        self.readers: Ints = np.zeros(self.count, dtype=np.int64)
        layers = {call.node: (call, positions) for call, positions in weighted_calls(program)}
        for node, classes in used_up(program, deps):
            self.readers[classes] += 1
            if node in layers and len(classes):
                call, positions = layers[node]
                weight = call["weight"]
                size = math.prod(shape_of(weight) if isinstance(weight, fx.Node) else weight.shape)
                self.macs[classes] += size * positions / batch_of(program) / len(classes)

    def mask(self, classes: Sequence[Ints]) -> Bools:
        """Mark classes: [classes]."""
        found = np.zeros(self.count, dtype=np.bool_)
        for some in classes:
            found[some] = True
        return found


def used_up(program: Program, deps: ChannelDependencies) -> Iterator[tuple[fx.Node, Ints]]:
    """Yield every node with the classes that it reads and does not pass on; cuts pass everything on."""
    for node in program.graph.nodes:
        if node in deps.cuts or not (node.op.startswith("call_") and _has_tensor(node)):
            continue
        inputs = [n for n in node.all_input_nodes if n.op != "get_attr" and is_tensor(n)]
        given = _classes(deps, [deps.labels.get(n) for n in inputs])
        kept = _classes(deps, [deps.labels.get(node)])
        if len(lost := np.setdiff1d(given, kept)):
            yield node, lost


def _input_axis(call: Call) -> int:
    shape = shape_of(call.input)
    if call.key == "linear":
        return len(shape) - 1
    weight = call["weight"]
    return len(shape) - (len(shape_of(weight)) if isinstance(weight, fx.Node) else weight.ndim) + 1


def _groups(call: Call) -> int:
    return 1 if call.key == "linear" else int(concrete(call["groups"]))


def _vector(deps: ChannelDependencies, node: Any, axis: int) -> Ints | None:
    """Return the classes along an axis that has a vector of them."""
    factor = deps.labels_of(node).factor_at(axis) if is_tensor(node) else None
    return deps.class_of[factor.atoms] if factor is not None and len(factor.axes) == 1 else None


def _only_vector(deps: ChannelDependencies, node: fx.Node) -> tuple[int, Ints] | None:
    """Return the axis with channels and its classes, if there is one such axis."""
    factors = deps.labels_of(node).factors
    if len(factors) != 1 or len(factors[0].axes) != 1:
        return None
    return factors[0].axes[0], deps.class_of[factors[0].atoms]


def _has_tensor(node: fx.Node) -> bool:
    value = value_of(node)
    return is_tensor(node) or (isinstance(value, (tuple, list, dict)) and not all(isinstance(v, int) for v in value))


def _classes(deps: ChannelDependencies, labels: Collection[Any]) -> Ints:
    found = [deps.class_of[factor.atoms.ravel()] for one in labels for factor in _factors(one)]
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def _factors(labels: Any) -> Iterator[Any]:
    if isinstance(labels, ChannelLabels):
        yield from labels.factors
    elif isinstance(labels, (tuple, list, dict)):
        for part in labels.values() if isinstance(labels, dict) else labels:
            yield from _factors(part)
