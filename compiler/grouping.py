"""From classes to groups and blocks: what is chosen together.

A *group* is what a person calls coupled layers: classes that share a producer, or a balance. Inside a group the
classes that touch the same producers form one *block* with one ratio; balances cut blocks into *cells* of which each
must keep the same fraction. With several balances over the same classes the cells are the intersections; keeping
``size * level / levels`` of every cell (levels = gcd of the cell sizes) satisfies all of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from .dependency import Balance, Block, ChannelGroup, Classes, ParamSlice, Pin, Role
from .rules.registry import RuleContext

Ints = npt.NDArray[np.int64]


def group_classes(ctx: RuleContext, class_of: Ints) -> tuple[ChannelGroup, ...]:
    """Close the declarations of an analysis into groups, in the order of their first producer."""
    count = int(class_of.max()) + 1 if len(class_of) else 0
    producers = [s for s in ctx.slices if s.role is Role.PRODUCES]
    axes = [class_of[s.atoms.ravel()] for s in producers]
    coupled = [*axes, *(class_of[b.cells.ravel()] for b in ctx.balances)]
    component = _components(count, coupled)
    produced = np.isin(component, component[np.concatenate(axes)]) if axes else np.zeros(count, dtype=np.bool_)
    rest, carrier = _carried(ctx, class_of, produced)
    component = _components(count, [*coupled, *rest])
    chosen = np.zeros(count, dtype=np.bool_)  # anew, behind a cut
    for cut in ctx.cuts.values():
        chosen[class_of[cut.atoms]] = True
    pinned = np.zeros(count, dtype=np.bool_)
    for pin in ctx.pins:
        pinned[class_of[pin.atoms]] = True
    pinned |= ~(produced | chosen)  # no layer gives these channels: an input's, a position table's rows
    cell_of, ratio_of = _cells(class_of, count, ctx.balances)
    signature = _signatures(count, axes)
    units = _units(ctx, class_of)
    names = _names(ctx, producers)
    members: dict[int, Ints] = {}
    order = np.argsort(component, kind="stable")
    bounds = np.flatnonzero(np.diff(component[order])) + 1
    for chunk in np.split(order, bounds):
        members[int(component[chunk[0]])] = chunk.astype(np.int64)
    layers: dict[int, dict[str, None]] = {}
    for s, axis in zip(producers, axes, strict=True):
        layers.setdefault(int(component[axis[0]]), {})[names[s.name]] = None
    pins = _pins_by_component(ctx.pins, class_of, component)
    groups: list[tuple[int, ChannelGroup]] = []
    for c, classes in members.items():
        if c not in layers and int(classes[0]) not in carrier:
            continue  # channels that no parameter sees (an input's)
        title = tuple(layers.get(c, {}))
        blocks = _blocks(classes, signature, cell_of, ratio_of, pinned, units)
        name = title[0] if title else carrier[int(classes[0])]
        groups.append((int(classes[0]), ChannelGroup(name, title, classes, blocks, tuple(pins.get(c, ())))))
    return tuple(g for _, g in sorted(groups, key=lambda pair: pair[0]))


def _components(count: int, sets: Sequence[Ints]) -> Ints:
    """Connected components of classes, where each set is connected."""
    pairs = [(np.full(len(s) - 1, s[0]), s[1:]) for s in sets if len(s) > 1]
    if not pairs:
        return np.arange(count, dtype=np.int64)
    a, b = np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])
    graph = sparse.coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    return csgraph.connected_components(graph, directed=False)[1].astype(np.int64)


def _cells(class_of: Ints, count: int, balances: Sequence[Balance]) -> tuple[Ints, Ints]:
    """Return, per class, the cell that it is in (-1 for none) and the balance component that the cell belongs to.

    Classes of one cell stand in the same rows of every balance, equally often. So a row is a sum of whole cells, and
    rows of equal size that keep the same fraction of every cell keep equally many channels.
    """
    cell = np.full(count, -1, dtype=np.int64)
    fresh = 0
    bound: list[Ints] = []
    generator = np.random.default_rng(0)
    for balance in balances:
        rows = class_of[balance.cells]
        if balance.partner is None and (rows == rows[:, :1]).all():
            continue  # every row is one class: whatever stays, stays as whole rows
        flat, position = np.unique(rows, return_inverse=True)
        bound.append(flat)
        where = np.zeros(len(flat), dtype=np.uint64)  # a number for the rows that a class stands in
        marks = generator.integers(1, 1 << 62, size=len(rows), dtype=np.uint64)
        np.add.at(where, position.ravel(), np.repeat(marks, rows.shape[1]))
        # Refine: a class's new cell is the pair (old cell, its rows).
        _, inverse = np.unique(np.stack([cell[flat].astype(np.uint64), where]), axis=1, return_inverse=True)
        cell[flat] = fresh + inverse.ravel()
        fresh += int(inverse.max()) + 1
    return cell, _components(count, bound)


def _signatures(count: int, axes: Sequence[Ints]) -> Ints:
    """Return a number per class that two classes share when the same producers have them."""
    signature = np.zeros(count, dtype=np.uint64)
    generator = np.random.default_rng(0)
    for axis in axes:
        signature[axis] = signature[axis] + generator.integers(1, 1 << 62, dtype=np.uint64)  # once per class
    return np.unique(signature, return_inverse=True)[1].astype(np.int64)


def _units(ctx: RuleContext, class_of: Ints) -> dict[int, set[int]]:
    """Return how many channels of a layer each class stands for that is a cell and goes as a whole."""
    found: dict[int, set[int]] = {}
    for cells in ctx.cells:
        classes, channels = np.unique(class_of[np.unique(cells.atoms)], return_counts=True)
        for class_, number in zip(classes.tolist(), channels.tolist(), strict=True):
            found.setdefault(class_, set()).add(number)
    return found


def _blocks(
    classes: Classes, signature: Ints, cell_of: Ints, component: Ints, pinned: Any, units: Mapping[int, set[int]]
) -> tuple[Block, ...]:
    def made(cells: tuple[Classes, ...], levels: int) -> Block:
        joined = np.concatenate(cells)
        sizes = {size for class_ in joined.tolist() for size in units.get(class_, ())} if units else ()
        return Block(cells, levels, pinned[joined], tuple(sorted(sizes)) or (1,))

    blocks: list[Block] = []
    free = classes[cell_of[classes] < 0]
    for key in dict.fromkeys(signature[free].tolist()):
        chosen = free[signature[free] == key]
        blocks.append(made((chosen,), len(chosen)))
    bound = classes[cell_of[classes] >= 0]
    for key in dict.fromkeys(component[bound].tolist()):
        inside = bound[component[bound] == key]
        cells = tuple(inside[cell_of[inside] == c] for c in dict.fromkeys(cell_of[inside].tolist()))
        blocks.append(made(cells, int(np.gcd.reduce([len(c) for c in cells]))))
    return tuple(blocks)


def _names(ctx: RuleContext, producers: Sequence[ParamSlice]) -> dict[str, str]:
    """Parameter name -> layer name: the module's path, or the parameter itself where it is used functionally."""
    names: dict[str, str] = {}
    for s in producers:
        owner, _, leaf = s.name.rpartition(".")
        names[s.name] = owner if leaf == "weight" and owner else s.name
    del ctx
    return names


def _carried(ctx: RuleContext, class_of: Ints, produced: npt.NDArray[np.bool_]) -> tuple[list[Ints], dict[int, str]]:
    """Return the classes that tensors have and no layer gives, axis by axis, and the first tensor that has each."""
    found: list[Ints] = []
    carrier: dict[int, str] = {}
    for s in ctx.slices:
        classes = class_of[s.atoms.ravel()]
        classes = np.unique(classes[~produced[classes]])
        if len(classes):
            found.append(classes)
            for c in classes.tolist():
                carrier.setdefault(c, s.name)
    return found, carrier


def _pins_by_component(pins: Sequence[Pin], class_of: Ints, component: Ints) -> dict[int, list[Pin]]:
    found: dict[int, list[Pin]] = {}
    for pin in pins:
        for c in np.unique(component[class_of[pin.atoms]]):
            found.setdefault(int(c), []).append(pin)
    return found
