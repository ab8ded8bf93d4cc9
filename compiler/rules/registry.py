"""How an operation declares what it does to channels: the rule table and the context that rules write to.

A rule gets the context and the normalised call, declares slices, counts, ties, pins and balances, and returns the
labels of the result (a tuple of them for an operation with several results). It never looks at names of models or
modules.

    @rule("batch_norm")
    def batch_norm(ctx: RuleContext, call: Call) -> ChannelLabels: ...
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx

from ..dependency import KEEP, ArgUse, AttrUse, Balance, Cells, Count, Cut, Gather, ParamSlice, Pin, Role, Tie
from ..errors import InternalError
from ..labels import Atoms, ChannelLabels, Factor
from ..layers import layer_class
from ..mutation import seen_elsewhere
from ..ops import CLASSES, UNKNOWN, Call, attribute_of
from ..program import Program
from ..shapes import is_tensor, shape_of, value_of

Labels = Any
"""ChannelLabels, or a tuple or dict of them."""
Rule = Callable[["RuleContext", Call], Labels]
RULES: dict[str, Rule] = {}


def rule(*keys: str) -> Callable[[Rule], Rule]:
    """Register a rule for operation keys; a second rule for a key is refused."""

    def register(function: Rule) -> Rule:
        for key in keys:
            if key in RULES:
                raise InternalError(f"operation {key!r} has two rules: {RULES[key].__name__} and {function.__name__}")
            RULES[key] = function
        return function

    return register


def _computed_from(graph: fx.Graph) -> dict[str, str]:
    """Return the nodes that no data reach -> the first parameter or buffer that they are computed from."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            found[node.name] = str(node.target)
        elif node.op in ("call_function", "call_method") and node.all_input_nodes:
            sources = [found.get(read.name, "") for read in node.all_input_nodes]
            if all(sources):
                found[node.name] = sources[0]
    return found


class RuleContext:
    """What rules read from and write to. One per analysis."""

    def __init__(self, program: Program, *, whole_cells: bool = False, not_cells: Collection[str] = ()) -> None:
        self.program = program
        self.whole_cells = whole_cells
        """Whether heads and groups go as wholes: see :mod:`.cells`."""
        self.not_cells = frozenset(not_cells)
        """Nodes at which rows of channels are known to be no cells."""
        self.cells: list[Cells] = []
        self.assumed: list[Cells] = []
        """What was taken for cells until an operation treats it as a batch."""
        self.batches: list[Atoms] = []
        """What products treat as one."""
        self.env: dict[fx.Node, Labels] = {}
        self.chains: dict[fx.Node, fx.Node] = {}
        """Result of pure movement -> the one-axis tensor that it was moved from."""
        self.positions: dict[fx.Node, Labels] = {}
        """Result of pure movement -> labels that say where each channel stood in that tensor."""
        self.slices: list[ParamSlice] = []
        self.attributes: list[AttrUse] = []
        self.arguments: list[ArgUse] = []
        self.ties: list[Tie] = []
        self.pins: list[Pin] = []
        self.balances: list[Balance] = []
        self.norms: dict[str, Atoms] = {}
        self.gathers: dict[fx.Node, Gather] = {}
        self.cuts: dict[fx.Node, Cut] = {}
        self.opaque: dict[int, str] = {}
        """Identity of a parameter that an unknown module reads -> that node's name."""
        self.atoms = 0
        self.weights = _computed_from(program.graph)
        self.node = ""
        """Name of the node being interpreted: the place that ties and pins are recorded at."""

    # Reading ------------------------------------------------------------------------------------------------------

    def labels(self, argument: Any) -> ChannelLabels:
        """Return the labels of a tensor argument (none for anything else)."""
        found = self.env.get(argument) if isinstance(argument, fx.Node) else None
        return found if isinstance(found, ChannelLabels) else ChannelLabels()

    def shape(self, argument: Any) -> tuple[int, ...]:
        """Return the shape of a tensor argument."""
        return shape_of(argument)

    # Channels -----------------------------------------------------------------------------------------------------

    def fresh(self, count: int) -> Atoms:
        """Give birth to ``count`` channels."""
        first, self.atoms = self.atoms, self.atoms + count
        return np.arange(first, first + count, dtype=np.int64)

    def fixed(self, count: int, reason: str) -> Atoms:
        """Give birth to channels that must stay."""
        atoms = self.fresh(count)
        self.pin(atoms, reason)
        return atoms

    def tie(self, a: Atoms, b: Atoms, reason: str) -> None:
        """Couple ``a[i]`` with ``b[i]``."""
        if a.size and not np.array_equal(a, b):
            self.ties.append(Tie(a.ravel(), b.ravel(), self.node, reason))

    def pin(self, atoms: Atoms, reason: str) -> None:
        """Keep these channels for good."""
        if atoms.size:
            source = self.weights.get(self.node, "")
            reason += f", of the weights '{source}' (fold-constants makes numbers of them)" if source else ""
            self.pins.append(Pin(np.unique(atoms), self.node, reason, source))

    def pin_all(self, labels: Labels, reason: str) -> None:
        """Pin every channel in some labels."""
        if isinstance(labels, ChannelLabels):
            for factor in labels.factors:
                self.pin(factor.atoms, reason)
        elif isinstance(labels, dict):
            for value in labels.values():
                self.pin_all(value, reason)
        elif isinstance(labels, (tuple, list)):
            for value in labels:
                self.pin_all(value, reason)

    def balance(self, cells: Atoms, reason: str, partner: Atoms | None = None, *, droppable: bool = False) -> None:
        """Ask for equal counts in the rows of ``cells``."""
        self.balances.append(Balance(cells, self.node, reason, partner, droppable))

    def collapse(self, factor: Factor, axis: int, reason: str) -> Factor | None:
        """Make one label serve all positions along ``axis``; returns the factor without that axis.

        ``None`` when the axis was the factor's only one: the operation mixes the channels themselves, so they are
        pinned.
        """
        position = factor.axes.index(axis)
        if len(factor.axes) == 1:
            self.pin(factor.atoms, reason)
            return None
        first = factor.atoms.take([0], axis=position)
        self.tie(np.broadcast_to(first, factor.atoms.shape), factor.atoms, reason)
        return Factor(tuple(a for a in factor.axes if a != axis), first.squeeze(position))

    def collapsed(self, labels: ChannelLabels, axes: Sequence[int], reason: str) -> ChannelLabels:
        """Make one label serve all positions along each of ``axes`` (kept, but no longer labelled)."""
        for axis in axes:
            factor = labels.factor_at(axis)
            if factor is not None:
                kept = self.collapse(factor, axis, reason)
                labels = ChannelLabels((*labels.without(axis), *([kept] if kept else [])), labels.origin)
        return labels

    def along(self, labels: ChannelLabels, axis: int, size: int, reason: str) -> Atoms:
        """Return the one vector of atoms along ``axis``, tying the factor's other axes; fixed ones if there is none."""
        factor = labels.factor_at(axis)
        if factor is None:
            return self.fixed(size, f"{labels.origin or 'this axis'} carries no removable channels")
        while len(factor.axes) > 1:
            other = next(a for a in factor.axes if a != axis)
            shrunk = self.collapse(factor, other, reason)
            assert shrunk is not None
            factor = shrunk
        return factor.atoms

    def regular(self, labels: ChannelLabels, reason: str) -> ChannelLabels:
        """Ask that what remains of every factor over several axes is a full rectangle: equal counts in its rows."""
        for factor in labels.factors:
            if len(factor.axes) > 1:
                self.balance(factor.atoms.reshape(-1, factor.atoms.shape[-1]), reason)
        return labels

    # Uses ---------------------------------------------------------------------------------------------------------

    def claim(self, call: Call, name: str, axis: int, atoms: Atoms, role: Role) -> None:
        """Declare that an axis of a parameter of the call is indexed by ``atoms`` (no-op without such a tensor)."""
        value = call.params.get(name)
        if isinstance(value, torch.Tensor):
            full = f"{call.owner}.{name}" if call.owner else name
            self.slices.append(ParamSlice(full, axis, atoms, role, self.node, call.key))
        elif is_tensor(value):
            labels = self.labels(value)
            size = self.shape(value)[axis]
            if atoms.ndim == 2 and size == 1:
                return  # one channel per group: nothing can be removed along this axis
            own = self.along(labels, axis, size, f"axis {axis} of {value.name} is one list of channels")
            if atoms.ndim == 2:  # (groups, channels): a computed weight cannot choose per group
                self.tie(np.broadcast_to(own, atoms.shape), atoms, f"{value.name} is shared by all groups")
            else:
                self.tie(own, atoms, f"{value.name} is a tensor of the graph")
            if role is not Role.CARRIES and not self._stands_for(own, role, call, size) and role is Role.CONSUMES:
                # What the weight computes from its columns cannot be told, so neither what it is without some of them.
                self.pin(own, f"{value.name} is computed from several tensors")

    def _stands_for(self, atoms: Atoms, role: Role, call: Call, size: int) -> bool:
        """Give the parameters behind a functional weight their role; whether one of them is the whole axis."""
        whole = False
        for index, found in enumerate(self.slices):
            if found.kind not in ("get_attr", call.key) or found.atoms.ndim > 1:
                continue
            # A part of a parameter's rows gives channels too: what attention projects queries, keys and values by.
            part = role is Role.PRODUCES and np.isin(atoms, found.atoms).all()
            if part or np.isin(found.atoms, atoms).all():
                if found.role is Role.CARRIES:
                    self.slices[index] = ParamSlice(found.name, found.axis, found.atoms, role, self.node, call.key)
                whole |= len(found.atoms) == size
        return whole

    def count_attribute(self, call: Call, attribute: str, cells: Atoms, item: int | None = None) -> None:
        """Declare that an attribute of the call's module (or its functional parameter) counts channels.

        ``cells`` is a vector of atoms, or (rows, atoms per row) where rows are counted.
        """
        count = Count(cells if cells.ndim == 2 else cells[:, None])
        if call.module is not None:
            self.attributes.append(AttrUse(call.owner, attribute, count, item))
        elif attribute in call.params:
            if item is None:
                self.count_argument(call, attribute, count)
            else:
                length = len(value_of(call[attribute]) if isinstance(call[attribute], fx.Node) else call[attribute])
                template: list[Any] = [KEEP] * length
                template[item] = count
                self.count_argument(call, attribute, template)

    def count_argument(self, call: Call, name: str, template: Any, key: str | None = None) -> None:
        """Declare that a parameter holds counts; ``key`` when the call must become another operation for it."""
        if call.module is not None:
            for item, count in enumerate(template):
                if isinstance(count, Count):
                    self.attributes.append(AttrUse(call.owner, attribute_of(call.key, name), count, item))
            return
        self.arguments.append(ArgUse(call.node, key or call.key, name, template))

    # Unknown operations -------------------------------------------------------------------------------------------

    def unknown(self, call: Call, reason: str | None = None) -> Labels:
        """Pin every channel that reaches the call; its results carry no removable channels."""
        reason = reason or _why_unknown(call)
        for argument in call.node.all_input_nodes:
            self.pin_all(self.env.get(argument), reason)
        return self.fixed_result(call.node, f"the result of {call.title!r} ({self.node})")

    def fixed_result(self, node: fx.Node, origin: str) -> Labels:
        """Return labels without channels for whatever the node computes."""

        def bare(value: Any) -> Labels:
            if isinstance(value, tuple):
                return tuple(bare(v) for v in value)
            if isinstance(value, dict):
                return {k: bare(v) for k, v in value.items()}
            return ChannelLabels(origin=origin)

        return bare(value_of(node))


def _why_unknown(call: Call) -> str:
    module = call.module
    if module is not None and layer_class(type(module)) in CLASSES:
        hooked = module._forward_hooks or module._forward_pre_hooks
        return f"{call.title} has a hook" if hooked else f"{call.title} is called with several inputs"
    return f"no rule for operation {call.title!r}"


def lookup(key: str) -> Rule | None:
    """Return the rule of an operation key."""
    found = None if key == UNKNOWN else RULES.get(key)
    return None if found is None else partial(_apply, found)


def _apply(found: Rule, ctx: RuleContext, call: Call) -> Labels:
    for view in seen_elsewhere(call.node, ctx.program.root):
        for changed in (view, call.input):
            ctx.pin_all(ctx.env.get(changed), "changed in place through a view")
    return found(ctx, call)
