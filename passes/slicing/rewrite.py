"""Rewrite the graph for the kept channels: counts in arguments, unequal splits, gathers in place of chains of moves.

    view(n, 2, c // 2, h, w) . transpose(1, 2) . view(n, c, h, w)   ->   index_select(x, 1, kept)
    chunk(x, 2, 1)                                                  ->   split(x, [kept, kept'], 1)
    a cut, behind which fewer channels stay than in front of it     ->   narrow or index_select
    size arguments along channel axes                               ->   what they now are

Nodes are copied one by one, and shapes inferred as they are, so every number that the graph computes from a size is
known before anything reads it: a size that still comes out right is left as it was written, another becomes a literal.
A number that is no size (a scale by sqrt(c)) keeps its original value, as in the masked original.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from ...compiler.capture import eliminate_dead_code
from ...compiler.dependency import KEEP, ArgUse, Count, Cut, Gather
from ...compiler.errors import CompilerError, InternalError
from ...compiler.labels import ChannelLabels
from ...compiler.ops import normalise, set_parameter
from ...compiler.program import Program, TensorSpec, place, referenced_tree
from ...compiler.shapes import concrete, infer_node, set_value, value_of
from .sizes import rescaled
from .tensors import KeptChannels, rebuild_modules


def rewrite(program: Program, tensors: dict[str, torch.Tensor], kept: KeptChannels) -> Program:
    """Return the compact program."""
    root = rebuild_modules(program, tensors, kept)
    graph = fx.Graph()
    compact = replace(program, graph=graph, root=root)
    _Rewriter(program, compact, kept).run()
    eliminate_dead_code(graph, root)
    # An earlier pass's gather may have become dead just now, and its indices with it.
    return replace(compact, root=referenced_tree(root, graph))


class _Rewriter:
    def __init__(self, program: Program, compact: Program, kept: KeptChannels) -> None:
        self.program = program
        self.compact = compact
        self.kept = kept
        self.deps = kept.deps
        self.containers = {path: m for path, m in compact.root.named_modules() if type(m) is nn.Module}
        self.arguments: dict[fx.Node, list[ArgUse]] = {}
        for use in self.deps.arguments:
            self.arguments.setdefault(use.node, []).append(use)
        self.moved: dict[fx.Node, fx.Node] = {}
        """Old node -> new node; nodes that cannot exist any more (ragged intermediates) are absent."""
        self.originally: dict[fx.Node, Any] = {}
        """New node -> value of the old one."""

    def run(self) -> None:
        remaining = iter(self.program.inputs)
        replaced = {node for node in self.deps.gathers if not self._survives(node)}
        read = self._read(replaced)
        for node in self.program.graph.nodes:
            if node in replaced:
                self.moved[node] = self._gather(node, self.deps.gathers[node])
            elif node in self.deps.cuts:
                self.moved[node] = self._pick(node, self.deps.cuts[node])
            elif node in read:
                new = self._copy(node)
                if node.op == "placeholder":
                    spec = next(remaining)
                    set_value(new, TensorSpec(spec.shape, spec.dtype))
                self.moved[node] = new
                self.originally[new] = value_of(node)

    def _read(self, replaced: set[fx.Node]) -> set[fx.Node]:
        """Return the nodes that somebody still reads: chains of moves that a gather replaces are not among them."""
        chains = {step for node in replaced for step in self.deps.gathers[node].path}
        gone: set[fx.Node] = set()
        for node in reversed(self.program.graph.nodes):
            if node in chains and all(user in replaced or user in gone for user in node.users):
                gone.add(node)
        return {node for node in self.program.graph.nodes if node not in gone}

    # Copying -------------------------------------------------------------------------------------------------------

    def _copy(self, node: fx.Node) -> fx.Node:
        try:
            new = self.compact.graph.node_copy(node, lambda n: self.moved[n])
        except KeyError as missing:
            raise InternalError(f"{node.name} reads {missing.args[0]}, which was replaced by a gather") from None
        if node.op in ("placeholder", "get_attr"):
            if node.op == "get_attr":
                infer_node(self.compact, new)
            return new
        self._freeze(node, new, self._patch(node, new))
        try:
            if not self._split_unequally(node, new):
                infer_node(self.compact, new)
        except CompilerError as error:
            raise InternalError(f"the pruned {node.name} does not run: {error}") from error
        return new

    def _patch(self, node: fx.Node, new: fx.Node) -> set[fx.Node]:
        """Write counts into arguments; returns the nodes that a counted argument was right to keep."""
        kept: set[fx.Node] = set()
        for use in self.arguments.get(node, []):
            if use.key == "split":
                continue  # needs the pieces' sizes: see _split_unequally
            written = normalise(self.compact, new).params[use.name]
            value = self._fill(use.template, written, new, use.key in ("reshape", "expand", "unflatten"))
            if value is not written:
                set_parameter(new, use.key, use.name, value)
            fx.map_arg(value, kept.add)
        return kept

    def _fill(self, template: Any, current: Any, at: fx.Node, free: bool) -> Any:
        """Return ``current`` with the counted entries corrected; ``free`` if -1 means "whatever is left"."""
        if template is KEEP:  # a size that stays, even if it was written as a number that does not
            before = self.originally.get(current, current) if isinstance(current, fx.Node) else current
            return self._number(current, before, at) if _is_number(before) and before != concrete(current) else current
        if isinstance(template, Count):
            count = self.kept.count(template)
            written = concrete(current)
            return current if written == count or (free and written == -1) else self._number(current, count, at)
        if isinstance(template, slice):
            current = current if isinstance(current, slice) else slice(None)
            return slice(
                self._fill(template.start, current.start, at, free),
                self._fill(template.stop, current.stop, at, free),
                current.step,
            )
        if isinstance(current, fx.Node):
            if isinstance(value_of(current), tuple):
                entries = [self._entry(current, i) for i in range(len(template))]
                filled = [self._fill(t, e, at, free) for t, e in zip(template, entries, strict=True)]
                unchanged = all(a is b for a, b in zip(filled, entries, strict=True))
                return current if unchanged else filled
            current = (current,)
        entries = list(current) if isinstance(current, (tuple, list)) else [current]
        spread = self._spread(template, entries)
        filled = [self._fill(t, c, at, free) for t, c in zip(template, spread, strict=True)]
        changed = [i for i, (new, old) in enumerate(zip(filled, spread, strict=True)) if new is not old]
        expands = at.target in ("expand", torch.broadcast_to, torch.Tensor.expand)
        follows = len(changed) == 1 and isinstance(spread[changed[0]], fx.Node)
        if free and follows and not expands and -1 not in concrete(spread):
            filled[changed[0]] = -1  # a number that may follow the batch: "whatever is left" is right for all of them
        return filled if isinstance(current, list) else tuple(filled)

    def _number(self, current: Any, wanted: Any, at: fx.Node) -> Any:
        """Return a number in place of the written one: one that still follows the batch, if that did."""
        found = rescaled(current, wanted, at) if isinstance(wanted, int) else None
        if found is None:
            return wanted
        self.originally[found] = self.originally.get(current, value_of(current))
        return found

    def _entry(self, sizes: fx.Node, index: int) -> fx.Node:
        with self.compact.graph.inserting_after(sizes):
            entry = self.compact.graph.call_function(operator.getitem, (sizes, index))
        entry.meta = dict(sizes.meta)
        set_value(entry, value_of(sizes)[index])
        self.originally[entry] = self.originally[sizes][index]
        return entry

    def _spread(self, template: Any, entries: list[Any]) -> list[Any]:
        """Match the written entries with the template: an index may use Ellipsis or leave out trailing axes."""
        if len(entries) == len(template):
            if any(e is Ellipsis for e in entries):
                return [slice(None) if e is Ellipsis else e for e in entries]
            return entries
        at = next((i for i, e in enumerate(entries) if e is Ellipsis), None)
        missing = [slice(None)] * (len(template) - len(entries) + (at is not None))
        return [*entries, *missing] if at is None else [*entries[:at], *missing, *entries[at + 1 :]]

    def _freeze(self, node: fx.Node, new: fx.Node, right: set[fx.Node]) -> None:
        """Give numbers that are not sizes their original value wherever a tensor or an output reads them."""
        if _is_number(value_of(node)):
            return
        replaced: dict[fx.Node, Any] = {}
        for old in node.all_input_nodes:
            mine = self.moved[old]
            if mine not in right and _is_number(value_of(old)) and value_of(old) != value_of(mine):
                replaced[mine] = self._original(mine, value_of(old))
        if replaced:
            new.args = fx.map_arg(new.args, lambda n: replaced.get(n, n))
            new.kwargs = fx.map_arg(new.kwargs, lambda n: replaced.get(n, n))

    def _original(self, sizes: fx.Node, before: Any) -> Any:
        """Return a number, or sizes of which only those that changed are written down: others may follow the batch."""
        if not isinstance(before, tuple):
            return before
        now = value_of(sizes)
        return tuple(b if b != now[i] else self._entry(sizes, i) for i, b in enumerate(before))

    def _split_unequally(self, node: fx.Node, new: fx.Node) -> bool:
        """Turn a split that would no longer make the right pieces into one with explicit sizes; whether it did."""
        use = next((u for u in self.arguments.get(node, []) if u.key == "split"), None)
        if use is None:
            return False
        wanted = [self.kept.count(c) for c in use.template]
        call = normalise(self.program, node)
        axis = concrete(call["dim"]) % len(value_of(call.input).shape)
        try:
            infer_node(self.compact, new)
            if [piece.shape[axis] for piece in value_of(new)] == wanted:
                return True
        except CompilerError:
            pass  # the sizes as written do not sum to what is left
        new.target = "split" if new.op == "call_method" else torch.split
        new.args, new.kwargs = (self.moved[call.input], wanted, axis), {}
        infer_node(self.compact, new)
        return True

    # Gathers -------------------------------------------------------------------------------------------------------

    def _survives(self, node: fx.Node) -> bool:
        """Tell whether the moves as written still give the kept channels in order."""
        gather = self.deps.gathers[node]
        if not gather.path:
            return bool(self._along(gather.source, gather.axis).all())
        return all(self._is_product(labels) for step in gather.path for labels in _each(self.deps.labels.get(step)))

    def _along(self, source: fx.Node, axis: int) -> npt.NDArray[np.bool_]:
        """Return which positions along an axis stay; rows of channels have the same ones there."""
        factor = self.deps.labels_of(source).factor_at(axis)
        assert factor is not None
        mask = np.moveaxis(self.kept.mask(factor.atoms), factor.axes.index(axis), 0)
        return np.asarray(mask.reshape(len(mask), -1).any(axis=1))

    def _is_product(self, labels: ChannelLabels) -> bool:
        for factor in labels.factors:
            mask = self.kept.mask(factor.atoms)
            product = np.ones_like(mask)
            for axis in range(mask.ndim):
                others = tuple(a for a in range(mask.ndim) if a != axis)
                product &= mask.any(axis=others, keepdims=True)
            if not np.array_equal(mask, product):
                return False
        return True

    def _gather(self, node: fx.Node, gather: Gather) -> fx.Node:
        """``index_select`` of the kept positions from where they now stand in the source."""
        mask = self._along(gather.source, gather.axis)
        place_now = np.cumsum(mask) - 1
        positions = gather.positions[mask[gather.positions]]
        return self._select(node, self.moved[gather.source], gather.axis, place_now[positions])

    def _pick(self, node: fx.Node, cut: Cut) -> fx.Node:
        """Take what stays behind a cut from what stays in front of it: nothing to do, a slice, or a gather."""
        source = self.moved[node.all_input_nodes[0]]
        picked = positions_behind(self.kept, cut)
        if len(picked) == int(self.kept.mask(cut.source).sum()) and _is_run(picked):
            return source
        if _is_run(picked):
            arguments = (source, cut.axis, int(picked[0]), len(picked))
            return self._placed(node, self.compact.graph.call_function(torch.narrow, arguments))
        return self._select(node, source, cut.axis, picked)

    def _select(self, node: fx.Node, source: fx.Node, axis: int, positions: npt.NDArray[np.int64]) -> fx.Node:
        name = self._buffer_name(node)
        place(self.compact.root, name, torch.from_numpy(positions.astype(np.int64)))
        index = self._placed(node, self.compact.graph.create_node("get_attr", name, (), {}))
        return self._placed(node, self.compact.graph.call_function(torch.index_select, (source, axis, index)))

    def _placed(self, node: fx.Node, new: fx.Node) -> fx.Node:
        """Give a new node its shape, and the block of the one that it stands for."""
        new.meta = {k: v for k, v in node.meta.items() if k == "nn_module_stack"}
        infer_node(self.compact, new)
        return new

    def _buffer_name(self, node: fx.Node) -> str:
        """Name the positions after the block that the moves were traced in, where a reader will look for them."""
        stack = node.meta.get("nn_module_stack")
        path: str = next(reversed(stack.values()))[0] if stack else ""
        block = path
        while block not in self.containers:  # never inside a leaf: it may be the original's own
            block = block.rpartition(".")[0]
        owner, number = self.containers[block], 0
        while hasattr(owner, f"gather_{number}"):
            number += 1
        return f"{block}.gather_{number}" if block else f"gather_{number}"


def positions_behind(kept: KeptChannels, cut: Cut) -> npt.NDArray[np.int64]:
    """Return where the channels that stay behind a cut will stand in front of it."""
    place_now = np.full(len(cut.source), -1, dtype=np.int64)
    before = kept.positions(cut.source)
    place_now[before] = np.arange(len(before))
    return place_now[kept.positions(cut.atoms)]


def _is_run(positions: npt.NDArray[np.int64]) -> bool:
    return bool((np.diff(positions) == 1).all())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, tuple) and all(isinstance(v, int) for v in value))


def _each(labels: Any) -> list[ChannelLabels]:
    if isinstance(labels, ChannelLabels):
        return [labels]
    if isinstance(labels, tuple):
        return [x for part in labels for x in _each(part)]
    if isinstance(labels, Mapping):
        return [x for part in labels.values() for x in _each(part)]
    return []
