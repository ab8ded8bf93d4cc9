"""Answers in words: why are these two layers coupled, and why does nothing go here.

Both are shortest paths over the recorded ties, followed for one channel: a hop is the node that tied two channels, and
the reason that its rule gave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt

from .analysis import analyze
from .dependency import Balance, ChannelDependencies, ChannelGroup
from .errors import OptionError
from .layer_graph import Layers, reads
from .program import Program

Ints = npt.NDArray[np.int64]
_LISTED = 12
_SHOWN = 4


@dataclass(frozen=True)
class Hop:
    """One tie on the way: ``node`` makes channels of ``source`` and ``target`` live and die together."""

    source: str
    target: str
    node: str
    reason: str


@dataclass(frozen=True)
class Reason:
    """Why some channels stay, and how that reaches the layer (no hops: they are its own)."""

    node: str
    reason: str
    channels: int
    hops: tuple[Hop, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """An answer: ``str()`` for a person, ``to_json()`` for a program."""

    layer: str
    other: str | None
    width: int
    """Channels that ``layer`` gives; cells, if they go as wholes."""
    shared: int = 0
    """How many of them live and die with channels of ``other``."""
    prunable: int = 0
    group: str = ""
    coupled: tuple[str, ...] = ()
    """Layers in the same group, when no other layer was asked about."""
    hops: tuple[Hop, ...] = ()
    pins: tuple[Reason, ...] = ()
    balances: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = field(default=())
    cells: int = 0
    """Channels that go as a whole; 0 where each goes on its own."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        from dataclasses import asdict

        return asdict(self)

    def __str__(self) -> str:
        """Return the answer in lines."""
        return "\n".join(self._about_two() if self.other is not None else self._about_one())

    def _about_two(self) -> Iterable[str]:
        what = "cells" if self.cells else "channels"
        if self.shared:
            yield (
                f"{self.layer} and {self.other} are coupled: {self.shared} of {self.layer}'s {self.width} {what} "
                f"live and die with {what} of {self.other}"
            )
            yield from _hop_lines(self.layer, self.hops)
        else:
            yield f"{self.layer} and {self.other} share no channels"
        yield from (f"  {note}" for note in self.notes)
        yield from (f"  counts must stay in step: {b.reason} (node {b.node})" for b in self.balances)

    def _about_one(self) -> Iterable[str]:
        state = "all may be removed but one" if self.prunable == self.width else f"{self.prunable} may be removed"
        what = f"cells of {self.cells} channels, which go as wholes" if self.cells else "channels"
        yield f"{self.layer}: {self.width} {what}, {state if self.prunable else 'all stay'}"
        if self.coupled:
            more = f" and {len(self.coupled) - _LISTED} more" if len(self.coupled) > _LISTED else ""
            yield f"  coupled with {', '.join(self.coupled[:_LISTED])}{more} (group {self.group})"
        else:
            yield "  coupled with no other layer"
        for pin in self.pins[:_SHOWN]:
            part = "they stay" if pin.channels == self.width else f"{pin.channels} of them stay"
            yield f"  {part}: {pin.reason} (node {pin.node})"
            if pin.hops:
                yield "  which reaches them by"
                yield from ("  " + line for line in _hop_lines(self.layer, pin.hops))
        if len(self.pins) > _SHOWN:
            yield f"  and {len(self.pins) - _SHOWN} more reasons"
        for balance in self.balances:
            yield f"  counts must stay in step: {balance.reason} (node {balance.node})"
        yield from (f"  {note}" for note in self.notes)


def _hop_lines(start: str, hops: Iterable[Hop]) -> Iterable[str]:
    yield f"  {start}"
    for hop in hops:
        yield f"    | {hop.reason} (node {hop.node})"
        yield f"  {hop.target}"


def explain(deps: ChannelDependencies, program: Program, layer: str, other: str | None = None) -> Explanation:
    """Explain a layer's channels, or what couples two layers.

    Args:
        deps: The analysis of ``program``.
        program: What was analysed.
        layer: A layer's path; for a normalisation, the channels that it passes on.
        other: Another layer.

    Raises:
        OptionError: There is no such layer; names the nearest.
    """
    layers = Layers(deps, program)
    for name in (layer, other):
        if name is not None and name not in layers.kind:
            raise _unknown(name, layers, program)
    return _one(layers, program, layer) if other is None else _two(layers, program, layer, other)


def coupling(deps: ChannelDependencies, program: Program, a: int, b: int) -> tuple[Hop, ...]:
    """Return the shortest path of ties between two channels (atoms) that live and die together."""
    ends = (np.array([atom], dtype=np.int64) for atom in (a, b))
    return _Paths(Layers(deps, program)).find(int(deps.class_of[a]), *ends)


def _unknown(name: str, layers: Layers, program: Program) -> OptionError:
    inside = [known for known in layers.names if known.startswith(f"{name}.")]
    if inside:
        return OptionError(f"{name!r} is not one layer but holds several", hint=", ".join(inside[:_LISTED]))
    if any(str(node.target) == name for node in program.graph.nodes):
        return OptionError(f"layer {name!r} has no channels of its own", hint="name the layer before or behind it")
    near = get_close_matches(name, layers.names, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}" if near else "`secateur inspect` lists the layers"
    return OptionError(f"there is no layer {name!r} with channels", hint=hint)


def _one(layers: Layers, program: Program, layer: str) -> Explanation:
    deps = layers.deps
    atoms = layers.gives(layer)
    classes = layers.classes(atoms)
    paths = _Paths(layers)
    pins: dict[tuple[str, str], Reason] = {}
    stay = np.zeros(len(classes), dtype=np.bool_)
    for pin in deps.pins:
        held = np.isin(classes, deps.class_of[pin.atoms])
        stay |= held
        if held.any() and (pin.node, pin.reason) not in pins:
            direct = np.isin(pin.atoms, atoms).any()
            hops = () if direct else paths.find(int(classes[held][0]), atoms, pin.atoms)
            pins[pin.node, pin.reason] = Reason(pin.node, pin.reason, int(held.sum()), hops)
    group = _group(deps, classes)
    balances = _balances(deps, classes, classes)
    return Explanation(
        layer=layer,
        other=None,
        width=len(classes),
        prunable=int((~stay).sum()),
        group=group.name if group is not None else "",
        coupled=tuple(name for name in group.layers if name != layer) if group is not None else (),
        pins=tuple(pins.values()),
        balances=balances,
        notes=_as_wholes(program, layer) if balances and not deps.whole_cells else (),
        cells=_unit(deps, np.unique(atoms), classes),
    )


def _unit(deps: ChannelDependencies, atoms: Ints, classes: Ints) -> int:
    """Return how many of a layer's channels go as a whole, where these do; else 0."""
    blocks = [b for g in deps.groups for b in g.blocks if np.isin(b.classes, classes).any()]
    return len(atoms) // len(classes) if any(b.whole for b in blocks) else 0


def _as_wholes(program: Program, layer: str) -> tuple[str, ...]:
    """Say what becomes of a layer's channels where whole heads and groups go."""
    found = _one(Layers(analyze(program, whole_cells=True), program), program, layer)
    if not found.cells:
        return ()
    if found.prunable and found.width > 1:
        return (f"or whole ones go, {found.width} cells of {found.cells} channels (cells=drop)",)
    why = f": {found.pins[0].reason} (node {found.pins[0].node})" if found.pins else ", since they go together"
    return (f"whole ones (cells=drop) stay{why}",)


def _two(layers: Layers, program: Program, layer: str, other: str) -> Explanation:
    deps = layers.deps
    mine, theirs = layers.gives(layer), layers.gives(other)
    a, b = layers.classes(mine), layers.classes(theirs)
    shared = np.intersect1d(a, b, assume_unique=True)
    hops = _Paths(layers).find(int(shared[0]), mine, theirs) if len(shared) else ()
    notes: list[str] = []
    if len(shared) and not hops:
        notes.append(f"they are the same channels: {other} passes on what {layer} gives, or the other way round")
    for giver, reader, _, count in reads(layers, program) if not len(shared) else ():
        if {giver, reader} == {layer, other}:
            notes.append(f"but {reader} reads {count} channels of {giver}, so its inputs shrink with them")
    groups = _group(deps, a), _group(deps, b)
    same = groups[0] is not None and groups[0] is groups[1]
    return Explanation(
        layer=layer,
        other=other,
        width=len(a),
        shared=len(shared),
        group=groups[0].name if same and groups[0] is not None else "",
        hops=hops,
        balances=_balances(deps, a, b) if not len(shared) else (),
        notes=tuple(notes),
        cells=_unit(deps, np.unique(mine), a),
    )


def _group(deps: ChannelDependencies, classes: Ints) -> ChannelGroup | None:
    return next((g for g in deps.groups if len(classes) and np.isin(classes[0], g.classes)), None)


def _balances(deps: ChannelDependencies, a: Ints, b: Ints) -> tuple[Reason, ...]:
    """Return the balances that bind channels of both sets."""
    found: dict[tuple[str, str], Reason] = {}
    for balance in deps.balances:
        rows = deps.class_of[balance.cells]
        if deps.whole_cells and balance.partner is None and (rows == rows[:, :1]).all():
            continue  # whole rows go: they are in step by themselves
        bound = deps.class_of[_atoms(balance)]
        count = int(np.isin(a, bound).sum())
        if count and np.isin(b, bound).any():
            found.setdefault((balance.node, balance.reason), Reason(balance.node, balance.reason, count))
    return tuple(found.values())


def _atoms(balance: Balance) -> Ints:
    parts = [balance.cells.ravel(), *([balance.partner.ravel()] if balance.partner is not None else [])]
    return np.concatenate(parts)


class _Paths:
    """Shortest paths over ties between atoms of one class."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        ties = layers.deps.ties
        empty = np.empty(0, dtype=np.int64)
        self._a = np.concatenate([t.a for t in ties]) if ties else empty
        self._b = np.concatenate([t.b for t in ties]) if ties else empty
        self._tie = np.repeat(np.arange(len(ties)), [len(t.a) for t in ties])

    def find(self, channel: int, start: Ints, end: Ints) -> tuple[Hop, ...]:
        """Return the hops from any atom in ``start`` to any in ``end``, of class ``channel``; none if they meet."""
        class_of = self._layers.deps.class_of
        inside = np.flatnonzero(class_of[self._a] == channel)
        neighbours: dict[int, list[tuple[int, int]]] = {}
        for a, b, tie in zip(
            self._a[inside].tolist(), self._b[inside].tolist(), self._tie[inside].tolist(), strict=True
        ):
            neighbours.setdefault(a, []).append((b, tie))
            neighbours.setdefault(b, []).append((a, tie))
        goal = set(end[class_of[end] == channel].tolist())
        before: dict[int, tuple[int, int] | None] = dict.fromkeys(start[class_of[start] == channel].tolist())
        waiting = deque(before)
        while waiting:
            atom = waiting.popleft()
            if atom in goal:
                return self._hops(atom, before)
            for neighbour, tie in neighbours.get(atom, []):
                if neighbour not in before:
                    before[neighbour] = (atom, tie)
                    waiting.append(neighbour)
        return ()

    def _hops(self, atom: int, before: dict[int, tuple[int, int] | None]) -> tuple[Hop, ...]:
        hops: list[Hop] = []
        while (step := before[atom]) is not None:
            tie = self._layers.deps.ties[step[1]]
            hops.append(Hop(self._name(step[0]), self._name(atom), tie.node, tie.reason))
            atom = step[0]
        return tuple(reversed(hops))

    def _name(self, atom: int) -> str:
        owner = int(self._layers.owner[atom])
        return self._layers.names[owner] if owner >= 0 else "a channel of no layer"
