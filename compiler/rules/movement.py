"""Moves that only rearrange channels, and when what remains of them can be rebuilt.

A move changes positions, never values, so it couples nothing by itself. But after pruning its result must be a full
tensor again. Along one axis that is always so. Where a move splits the channel axis (``view(n, 2, c // 2, h, w)``),
what is kept need not be a rectangle; then

* if a later move merges the axes again (a channel shuffle), the chain of moves is one gather from where it started, and
  no constraint is needed: :class:`Gather` records it;
* if something else reads the rectangle, that operation asks for balanced rows (``RuleContext.regular``);
* if neither can be rebuilt, rows are tied position by position, which every move preserves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from ..dependency import KEEP, Count, Gather
from ..labels import Atoms, ChannelLabels, Factor, squeeze_constant
from ..ops import Call, normalise
from ..program import Program, TensorSpec
from ..shapes import concrete, shape_of, value_of
from .cells import as_cells, may_be_cells
from .registry import Labels, RuleContext

Mover = Callable[[ChannelLabels], Labels]
"""Labels before -> labels after: a pure function of the call."""

_LARGEST_SIMULATION = 1 << 26


def move(ctx: RuleContext, call: Call, mover: Mover) -> Labels:
    """Apply a move to the labels of the call's input, keeping track of chains of moves."""
    labels = ctx.labels(call.input)
    moved = mover(labels)
    several = [f for f in labels.factors if len(f.axes) > 1]
    if not several and not _any_several(moved):
        return moved
    source = ctx.chains.get(call.input) if several else call.input
    if source is not None:
        ctx.chains[call.node] = source
        ctx.positions[call.node] = mover(ctx.positions[call.input] if several else _numbered(labels))
        if isinstance(moved, ChannelLabels):
            _check_readers(ctx, call.node, moved, source)
            if several and not _any_several(moved):
                _end_chain(ctx, call.node, source)
    elif several and not _keeps_order(labels, mover):
        for factor in several:
            tie_rows(ctx, factor, "moved in an order that equal counts do not survive")
    return moved


def element(ctx: RuleContext, node: fx.Node, parent: fx.Node, labels: Labels) -> Labels:
    """One result of a move with several (split, unbind)."""
    source = ctx.chains.get(parent)
    if source is not None and isinstance(labels, ChannelLabels):
        ctx.chains[node] = source
        ctx.positions[node] = ctx.positions[parent][concrete(node.args[1])]
        _check_readers(ctx, node, labels, source)
        if not _any_several(labels):
            _end_chain(ctx, node, source)
    return labels


def _numbered(labels: ChannelLabels) -> ChannelLabels:
    """Labels of the same form that say where in its factor each channel stands."""
    return ChannelLabels(
        tuple(Factor(f.axes, np.arange(f.atoms.size, dtype=np.int64).reshape(f.atoms.shape)) for f in labels.factors)
    )


def _check_readers(ctx: RuleContext, node: fx.Node, labels: ChannelLabels, source: fx.Node) -> None:
    """Where something but a move reads the middle of a chain, every step up to there must stay a full rectangle."""
    if not _any_several(labels) or all(_key(ctx, user) in MOVES for user in node.users):
        return
    path = _path(node, source)
    if _moves_rows(ctx, path, source):
        ctx.regular(ctx.env[path[0]] if path[0] is not node else labels, "read between two moves")
        return
    for step in path:
        here = labels if step is node else ctx.env.get(step)
        for x in here if isinstance(here, tuple) else (here,):
            if not isinstance(x, ChannelLabels):
                continue
            positions = ctx.positions[step]
            if isinstance(positions, ChannelLabels) and _in_order(positions, ctx.labels(source)):
                ctx.regular(x, "read between two moves")
            else:
                for factor in x.factors:
                    if len(factor.axes) > 1:
                        tie_rows(ctx, factor, "read between two moves")


def _moves_rows(ctx: RuleContext, path: tuple[fx.Node, ...], source: fx.Node) -> bool:
    """Tell whether a chain views channels as rows and then moves whole rows: equal counts in all rows then suffice."""
    first = ctx.positions[path[0]]
    if not isinstance(first, ChannelLabels) or not _in_order(first, ctx.labels(source)):
        return False
    (size, *others) = {f.atoms.shape[-1] for f in first.factors if len(f.axes) > 1} or {0}
    return not others and all(_has_rows(ctx.positions[step], size) for step in path)


def _has_rows(positions: Labels, size: int) -> bool:
    """Tell whether positions are whole rows of this size, in whatever order."""
    if isinstance(positions, tuple):
        return all(_has_rows(part, size) for part in positions)
    if not isinstance(positions, ChannelLabels):
        return False
    return all(
        f.atoms.shape[-1] == size and bool((np.diff(f.atoms, axis=-1) == 1).all())
        for f in positions.factors
        if len(f.axes) > 1
    )


def _in_order(positions: ChannelLabels, source: ChannelLabels) -> bool:
    """Tell whether all channels of the source are there, in their order: equal counts per row then suffice."""
    sizes = [f.atoms.size for f in source.factors]
    return [f.atoms.size for f in positions.factors] == sizes and all(
        np.array_equal(f.atoms.ravel(), np.arange(f.atoms.size)) for f in positions.factors
    )


def _key(ctx: RuleContext, user: fx.Node) -> str:
    return "output" if user.op == "output" else normalise(ctx.program, user).key


MOVES = frozenset(
    "reshape reshape_as flatten unflatten squeeze unsqueeze permute transpose matrix_transpose movedim expand "
    "expand_as repeat copy split chunk tensor_split unbind select narrow getitem".split()
)
"""Operations whose rule goes through :func:`move`."""


def _any_several(labels: Labels) -> bool:
    if isinstance(labels, tuple):
        return any(_any_several(x) for x in labels)
    return isinstance(labels, ChannelLabels) and any(len(f.axes) > 1 for f in labels.factors)


def _end_chain(ctx: RuleContext, node: fx.Node, source: fx.Node) -> None:
    path = _path(node, source)
    gather = as_gather(ctx, node, source, path)
    if gather is not None:
        ctx.gathers[node] = gather
        return
    for step in path[:-1]:
        labels = ctx.env.get(step)
        for factor in labels.factors if isinstance(labels, ChannelLabels) else ():
            if len(factor.axes) > 1:
                tie_rows(ctx, factor, "a chain of moves that no gather can replace")


def _path(node: fx.Node, source: fx.Node) -> tuple[fx.Node, ...]:
    """Return the moves from after ``source`` to ``node``, in order."""
    path = [node]
    while (moved := _moved(path[-1])) is not source:
        path.append(moved)
    return tuple(reversed(path))


def _moved(move: fx.Node) -> fx.Node:
    """Return what a move moves."""
    moved = move.args[0]
    assert isinstance(moved, fx.Node)
    return moved


def as_gather(ctx: RuleContext, node: fx.Node, source: fx.Node, path: tuple[fx.Node, ...]) -> Gather | None:
    """Run the moves on a tensor of positions; a gather along one axis is recognised by its result."""
    shape = shape_of(source)
    factors = ctx.labels(source).factors
    if len(factors) != 1 or len(factors[0].axes) != 1 or int(np.prod(shape)) > _LARGEST_SIMULATION:
        return None
    axis = factors[0].axes[0]
    start = torch.arange(int(np.prod(shape))).reshape(shape)
    values: dict[fx.Node, Any] = {source: start}
    for step in path:
        values[step] = run_move(ctx.program, step, values[_moved(step)])
    result: torch.Tensor = values[node]
    if result.ndim != start.ndim or [s for a, s in enumerate(result.shape) if a != axis] != [
        s for a, s in enumerate(shape) if a != axis
    ]:
        return None
    stride = int(np.prod(shape[axis + 1 :]))
    first = result
    for other in range(result.ndim):
        if other != axis:
            first = first.narrow(other, 0, 1)
    positions = (first.reshape(-1) // stride) % shape[axis]
    if not torch.equal(start.index_select(axis, positions), result):
        return None
    return Gather(source, axis, positions.numpy().astype(np.int64), path[:-1])


def run_move(program: Program, node: fx.Node, value: Any) -> Any:
    """Execute one move on ``value`` in place of its first argument."""
    rest, kwargs = _stand_ins(concrete(node.args[1:])), _stand_ins(concrete(node.kwargs))
    if node.op == "call_method":
        return getattr(value, str(node.target))(*rest, **kwargs)
    function: Any = program.owner(str(node.target)) if node.op == "call_module" else node.target
    return function(value, *rest, **kwargs)


def _stand_ins(value: Any) -> Any:
    """Replace tensors of which a move only wants the shape (``reshape_as``)."""
    if isinstance(value, TensorSpec):
        return torch.empty(()).expand(value.shape)
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return type(value)(_stand_ins(v) for v in value)
    return {k: _stand_ins(v) for k, v in value.items()} if isinstance(value, dict) else value


def _keeps_order(labels: ChannelLabels, mover: Mover) -> bool:
    """Tell whether the axes of each factor merge in row-major order, so that balanced rows stay in order."""
    moved = mover(_numbered(labels))
    if not isinstance(moved, ChannelLabels) or len(moved.factors) != len(labels.factors):
        return False
    for before, after in zip(labels.factors, moved.factors, strict=True):
        same_order = np.array_equal(after.atoms.ravel(), np.arange(before.atoms.size))
        split_rows_intact = len(after.axes) == 1 or after.atoms.shape[-1] == before.atoms.shape[-1]
        if len(before.axes) > 1 and not (same_order and split_rows_intact):
            return False
    return True


def tie_rows(ctx: RuleContext, factor: Factor, reason: str) -> None:
    """Tie a factor's rows position by position until it varies along one axis only."""
    if may_be_cells(ctx):
        as_cells(ctx, factor, factor.axes[:-1], reason, assumed=True)
        return
    atoms = factor.atoms
    while atoms.ndim > 1:
        first = atoms.take([0], axis=0)
        ctx.tie(np.broadcast_to(first, atoms.shape), atoms, reason)
        atoms = first[0]


def count_along(labels: ChannelLabels, axis: int) -> Any:
    """Return the size of a tensor along ``axis`` as a Count, or KEEP where it carries no channels."""
    factor = labels.factor_at(axis)
    if factor is None:
        return KEEP
    position, size = factor.axes.index(axis), factor.atoms.shape[factor.axes.index(axis)]
    if 0 < position == len(factor.axes) - 1:
        return Count(factor.atoms.reshape(-1, size), widest=True)
    return Count(np.moveaxis(factor.atoms, position, 0).reshape(size, -1))


def cells_along(labels: ChannelLabels, axis: int, positions: Atoms) -> Count:
    """Return the number of kept channels among some positions along ``axis``."""
    factor = labels.factor_at(axis)
    assert factor is not None
    atoms = np.moveaxis(factor.atoms, factor.axes.index(axis), 0)
    return Count(
        atoms[positions].reshape(len(positions), factor.atoms.size // factor.atoms.shape[factor.axes.index(axis)])
    )


def reduce_constant(labels: ChannelLabels) -> ChannelLabels:
    """Drop axes along which factors do not vary."""
    kept = [squeeze_constant(f) if len(f.axes) > 1 else f for f in labels.factors]
    return ChannelLabels(tuple(f for f in kept if f is not None), labels.origin)


def tensor_value(node: fx.Node) -> bool:
    """Tell whether a node computes one tensor."""
    return isinstance(value_of(node), TensorSpec)
