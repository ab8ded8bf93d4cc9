"""The channel-dependency analysis: interpret the graph over channel labels, then close ties into classes and groups.

Every node's rule declares slices, ties, pins and balances (``rules/``). Ties are edges between atoms; one connected-
components run over all of them is the whole union-find. Cost is linear in nodes plus labelled positions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph
from torch import fx

from .collection import no_collection
from .dependency import ChannelDependencies, Cut, ParamSlice, Pin, Role, Tie
from .grouping import group_classes
from .labels import Atoms, ChannelLabels, Factor
from .ops import normalise
from .program import TRAINING, Program, reasons
from .rules import RuleContext
from .rules.cells import refuted, tie_blocks
from .rules.registry import lookup
from .shapes import is_tensor, value_of


@no_collection()
def analyze(program: Program, cuts: Collection[fx.Node] = (), *, whole_cells: bool = False) -> ChannelDependencies:
    """Find which channels are coupled, which are free, and why.

    Args:
        program: A captured program with inferred shapes.
        cuts: Calls ``narrow(x, axis, 0, size)`` of a whole axis, which change nothing. What reads their results may do
            without channels that others go on reading in ``x``.
        whole_cells: Whether attention heads and groups of convolutions and group norms go as wholes, and stay as they
            are inside. Otherwise they keep their number, and all become smaller alike.

    Returns:
        The groups of coupled channels, with every slice, tie, pin and balance that made them.
    """
    not_cells = frozenset[str]()
    while True:
        ctx = RuleContext(program, whole_cells=whole_cells, not_cells=not_cells)
        for node in program.graph.nodes:
            ctx.node = node.name
            if node in cuts:
                _cut(ctx, node)
            else:
                _interpret(ctx, node)
        shared = _tie_shared_tensors(ctx)
        class_of = _classes(ctx.atoms, ctx.ties)
        wrong = refuted(ctx, class_of)
        if not wrong:
            break
        not_cells |= wrong
    while tie_blocks(ctx, class_of):
        class_of = _classes(ctx.atoms, ctx.ties)
    return ChannelDependencies(
        class_of=class_of,
        groups=group_classes(ctx, class_of),
        labels=ctx.env,
        slices=tuple(ctx.slices),
        attributes=tuple(ctx.attributes),
        arguments=tuple(ctx.arguments),
        ties=tuple(ctx.ties),
        pins=tuple(ctx.pins),
        balances=tuple(ctx.balances),
        cells=tuple(ctx.cells),
        norms=ctx.norms,
        gathers=ctx.gathers,
        cuts=ctx.cuts,
        whole_cells=whole_cells,
        shared=shared,
    )


def _interpret(ctx: RuleContext, node: fx.Node) -> None:
    if node.op == "placeholder":
        ctx.env[node] = ctx.fixed_result(node, f"the model's input {node.name!r}")
    elif node.op == "get_attr":
        ctx.env[node] = _attribute(ctx, node)
    elif node.op == "output":
        for argument in node.all_input_nodes:
            ctx.pin_all(ctx.env.get(argument), reasons(node).get(argument.name, "the model's output"))
    elif _computes_numbers(node):
        ctx.env[node] = None
    else:
        call = normalise(ctx.program, node)
        found = lookup(call.key)
        if found is None and call.module is not None:
            ctx.opaque.update((id(p), node.name) for p in call.module.parameters())
        ctx.env[node] = found(ctx, call) if found is not None else ctx.unknown(call)


def _cut(ctx: RuleContext, node: fx.Node) -> None:
    """Give a tensor new channels, one for each that it has; without channels of its own it stays as it is."""
    source, axis = node.args[:2]
    assert isinstance(axis, int)
    labels = ctx.env[node] = ctx.labels(source)
    factor = labels.factor_at(axis)
    if factor is not None and factor.axes == (axis,):
        cut = ctx.cuts[node] = Cut(factor.atoms, ctx.fresh(len(factor.atoms)), axis)
        ctx.env[node] = labels.replaced(axis, cut.atoms)


def _computes_numbers(node: fx.Node) -> bool:
    """Tell whether a call computes sizes, not tensors: nothing that channels could flow through."""
    value = value_of(node)
    if isinstance(value, (int, float, bool, str, torch.dtype, torch.device)):
        return True
    return isinstance(value, tuple) and all(isinstance(v, int) for v in value)


def _attribute(ctx: RuleContext, node: fx.Node) -> Any:
    """A parameter or buffer: every axis longer than 1 may carry channels, whoever reads it decides which."""
    target = str(node.target)
    if target == TRAINING or not is_tensor(node):
        return None
    tensor: torch.Tensor = ctx.program.attribute(target)
    if not tensor.is_floating_point():
        return ChannelLabels(origin=f"the tensor {target!r}")
    factors: list[Factor] = []
    for axis, size in enumerate(tensor.shape):
        if size > 1:
            atoms = ctx.fresh(size)
            ctx.slices.append(ParamSlice(target, axis, atoms, Role.CARRIES, node.name, "get_attr"))
            factors.append(Factor((axis,), atoms))
    return ChannelLabels(tuple(factors), f"the tensor {target!r}")


def _tie_shared_tensors(ctx: RuleContext) -> dict[str, str]:
    """Tie the uses of one tensor to one another: modules called twice, tied weights. Returns alias -> first name."""
    first_name: dict[int, str] = {}
    shared: dict[str, str] = {}
    first_use: dict[tuple[int, int], ParamSlice] = {}
    for use in ctx.slices:
        tensor = ctx.program.attribute(use.name)
        canonical = first_name.setdefault(id(tensor), use.name)
        if canonical != use.name:
            shared[use.name] = canonical
        if id(tensor) in ctx.opaque:
            ctx.node = ctx.opaque[id(tensor)]
            ctx.pin(use.atoms, f"{use.name} is also read by an operation without a rule")
        first = first_use.setdefault((id(tensor), use.axis), use)
        if first is not use:
            ctx.node = use.node
            if first.atoms.shape == use.atoms.shape:
                ctx.tie(first.atoms, use.atoms, f"{use.name} is used more than once")
            else:
                ctx.pin(np.concatenate([first.atoms.ravel(), use.atoms.ravel()]), f"{use.name} is read in two ways")
    return shared


def _classes(atoms: int, ties: Iterable[Tie]) -> Atoms:
    """Return the class of every atom: connected components of the ties, numbered in order of their first atom."""
    pairs = [(t.a, t.b) for t in ties]
    if not pairs:
        return np.arange(atoms, dtype=np.int64)
    a = np.concatenate([p[0] for p in pairs])
    b = np.concatenate([p[1] for p in pairs])
    graph = sparse.coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(atoms, atoms))
    _, labels = csgraph.connected_components(graph, directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


__all__ = ["Pin", "analyze"]
