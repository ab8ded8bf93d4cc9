"""Channel labels: which channel each position of a tensor belongs to, and the data movement that acts on them.

An *atom* is an integer, one channel born at one producer. The labels of a tensor are a few *factors* on disjoint axes;
a factor holds the atoms over its axes only, since batch and spatial axes carry none: a 256x56x56 activation is one
factor, a vector of 256 atoms over axis 1. After ``view(n, 2, c // 2, h, w)`` the factor is a 2 x c/2 array over axes
(1, 2). Weights have a factor per axis. An axis in no factor is fixed: nothing may be removed along it.

Movement runs on the label arrays exactly as it runs on the data, so none of it does index arithmetic by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Atoms: TypeAlias = npt.NDArray[np.int64]

LARGEST_FACTOR = 1 << 24
"""Atoms in one factor; a reshape that would exceed it gives up and pins (nothing real comes near)."""


@dataclass(frozen=True, eq=False)
class Factor:
    """Atoms over some axes (ascending) of a tensor; ``atoms.shape`` is the sizes of those axes."""

    axes: tuple[int, ...]
    atoms: Atoms


@dataclass(frozen=True, eq=False)
class ChannelLabels:
    """The labels of one tensor. ``origin`` says in words what an unlabelled axis is ("the input x")."""

    factors: tuple[Factor, ...] = ()
    origin: str = ""

    def factor_at(self, axis: int) -> Factor | None:
        """Return the factor that covers ``axis``."""
        for factor in self.factors:
            if axis in factor.axes:
                return factor
        return None

    def without(self, axis: int) -> tuple[Factor, ...]:
        """Return the factors that do not cover ``axis``."""
        return tuple(f for f in self.factors if axis not in f.axes)

    def replaced(self, axis: int, atoms: Atoms) -> ChannelLabels:
        """Return the labels with one vector of atoms along ``axis``, in place of the factor that covered it.

        Axes that shared that factor are left without labels: reading one vector along ``axis`` made them all alike.
        """
        return ChannelLabels((*self.without(axis), Factor((axis,), atoms)), self.origin)

    def renamed(self, axis_of: Callable[[int], int]) -> ChannelLabels:
        """Return the labels with every axis renamed, the arrays' axes kept ascending."""
        return ChannelLabels(
            tuple(sorted_factor(f.atoms, [axis_of(a) for a in f.axes]) for f in self.factors), self.origin
        )

    def taken(self, axis: int, positions: Atoms) -> ChannelLabels:
        """Return the labels after picking ``positions`` along ``axis`` (slice, roll, flip, repeat, gather)."""
        factors = tuple(
            Factor(f.axes, f.atoms.take(positions, axis=f.axes.index(axis))) if axis in f.axes else f
            for f in self.factors
        )
        return ChannelLabels(factors, self.origin)


def one_axis(axis: int, atoms: Atoms) -> ChannelLabels:
    """Return labels with a single vector of atoms along ``axis``."""
    return ChannelLabels((Factor((axis,), atoms),))


def sorted_factor(atoms: Atoms, axes: Sequence[int]) -> Factor:
    """Return the factor of atoms over these axes, which may stand in any order."""
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    return Factor(tuple(axes[i] for i in order), atoms.transpose(order))


def squeeze_constant(factor: Factor) -> Factor | None:
    """Drop the axes along which a factor does not vary; ``None`` if none is left."""
    axes, atoms = list(factor.axes), factor.atoms
    for position in reversed(range(len(axes))):
        first = atoms.take([0], axis=position)
        if bool((atoms == first).all()):
            atoms = first.squeeze(position)
            del axes[position]
    return Factor(tuple(axes), np.ascontiguousarray(atoms)) if axes else None


@dataclass(frozen=True)
class Reshaped:
    """Result of a reshape, with the atoms that lost their place and must stay."""

    labels: ChannelLabels
    lost: Atoms


def reshape(labels: ChannelLabels, before: Sequence[int], after: Sequence[int]) -> Reshaped:
    """Return the labels of ``x.reshape(after)`` for ``x`` of shape ``before``.

    Both shapes are split into the finest sequence of blocks of equal size; a factor is expanded over the blocks that it
    touches, reshaped like the data, and reduced again to the axes along which it varies.
    """
    if tuple(before) == tuple(after) or not labels.factors:
        return Reshaped(labels, _NONE)
    blocks = _blocks(before, after)
    factors: list[Factor] = []
    lost: list[Atoms] = []
    owner: dict[int, int] = {}
    touched = [[i for i, (ins, _) in enumerate(blocks) if set(f.axes) & set(ins)] for f in labels.factors]
    for index, block_ids in enumerate(touched):
        for block in block_ids:
            owner[block] = index if block not in owner else -1
    for factor, block_ids in zip(labels.factors, touched, strict=True):
        conflict = any(owner[b] == -1 for b in block_ids) or any(
            not any(a in blocks[b][0] for b in block_ids) for a in factor.axes
        )
        moved = None if conflict else _reshape_factor(factor, [blocks[b] for b in block_ids], before, after)
        if moved is None:
            lost.append(factor.atoms.ravel())
        else:
            factors.append(moved)
    return Reshaped(ChannelLabels(tuple(factors), labels.origin), np.concatenate(lost) if lost else _NONE)


def crowded(labels: ChannelLabels, before: Sequence[int], after: Sequence[int]) -> tuple[Factor, ...]:
    """Return the factors that a reshape would merge with a factor further out: both cannot have labels then."""
    if tuple(before) == tuple(after):
        return ()
    blocks = _blocks(before, after)
    taken = set[int]()
    found: list[Factor] = []
    for factor in sorted(labels.factors, key=lambda f: f.axes):
        touched = {i for i, (ins, _) in enumerate(blocks) if set(factor.axes) & set(ins)}
        if touched & taken:
            found.append(factor)
        else:
            taken |= touched
    return tuple(found)


_NONE: Atoms = np.empty(0, dtype=np.int64)


def _reshape_factor(
    factor: Factor,
    blocks: Sequence[tuple[list[int], list[int]]],
    before: Sequence[int],
    after: Sequence[int],
) -> Factor | None:
    ins = [a for block_ins, _ in blocks for a in block_ins]
    outs = [a for _, block_outs in blocks for a in block_outs]
    if len(ins) == len(outs) == 1:  # the axis only changed its position
        return Factor((outs[0],), factor.atoms)
    if math.prod(before[a] for a in ins) > LARGEST_FACTOR:
        return None
    shape = [before[a] if a in factor.axes else 1 for a in ins]
    full = np.broadcast_to(factor.atoms.reshape(shape), [before[a] for a in ins])
    return squeeze_constant(Factor(tuple(outs), full.reshape([after[a] for a in outs])))


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split two shapes of equal size into the finest aligned blocks; axes of size 1 belong to none."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while True:
        while i < len(before) and before[i] == 1:
            i += 1
        while j < len(after) and after[j] == 1:
            j += 1
        if i >= len(before) or j >= len(after):
            return blocks
        ins, outs, left, right = [i], [j], before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                if before[i] != 1:
                    ins.append(i)
                left, i = left * before[i], i + 1
            else:
                if after[j] != 1:
                    outs.append(j)
                right, j = right * after[j], j + 1
        blocks.append((ins, outs))


def concatenate(parts: Iterable[Atoms], position: int) -> Atoms:
    """Join atom arrays along one of their axes."""
    return np.concatenate(list(parts), axis=position)
