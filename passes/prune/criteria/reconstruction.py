"""Reconstruction error: what a channel's removal costs once its readers are refitted to make do without it.

A reader with weight W [O, J], moments H and G (:mod:`.moments`) and T positions loses, when the columns c of a channel
are removed and the others refitted by least squares,

    loss_c = T/2 tr(G W_c (H^-1)_cc^-1 W_c^T)          W_c [O, k], (H^-1)_cc [k, k]

and :mod:`.elimination` tells what is left then. Channels of a group are removed one after the other, always the one
that costs least, over all readers of the group together; a channel's score is what it cost when its turn came, made to
rise. The sum of the scores of what is removed therefore estimates the loss of removing it, in nats per sample, and
compares between groups.

Hassibi and Stork, Optimal Brain Surgeon, NIPS 1993 (one weight); Kurtic et al., The Optimal BERT Surgeon, EMNLP 2022,
eq. 3 and 5 (blocks); Wang et al., EigenDamage, ICML 2019 (Kronecker factors for channels).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from ....compiler.dependency import Classes
from .base import Context, Scores
from .elimination import Elimination
from .moments import Moments, moments

RIDGE: Final = 1e-3
"""Added to H's diagonal, relative to its mean."""
STEPS: Final = 256
"""Groups of more channels lose several at a time, so that there are no more steps than this."""


class Reconstruction:
    """Loss of the model's answers when channels go one by one and their readers are refitted."""

    needs_data: ClassVar[bool] = True
    fallback: ClassVar[str | None] = None
    estimates_loss: ClassVar[bool] = True
    """Scores add up to a loss, and compare between groups."""

    def score(self, context: Context) -> Scores:
        """Score; see :class:`.base.Criterion`."""
        found = moments(context)
        scores = np.full(context.classes, np.nan)
        for number, group in enumerate(context.deps.groups, start=1):
            context.progress(f"removing channels on trial: group {number} of {len(context.deps.groups)}")
            free = [block.classes[~block.pinned] for block in group.blocks]
            classes = np.concatenate(free) if free else np.empty(0, dtype=np.int64)
            parts = [part for one in found for part in _parts(one, classes)]
            if len(classes) and parts:
                scores[classes] = _remove(parts, len(classes))
                scores[np.setdiff1d(group.classes, classes)] = scores[classes].max()
        return scores


class _Part:
    """One group of a reader: the columns that some of the classes reach.

    Args:
        elimination: Of these columns.
        present: Which of the classes they are: [m], indices.
        count: How many classes there are.
    """

    def __init__(self, elimination: Elimination, present: Tensor, count: int) -> None:
        self._elimination, self._present = elimination, present
        self._local = torch.full((count,), -1)
        self._local[present] = torch.arange(len(present))

    def add_losses(self, losses: Tensor) -> None:
        """Add what removing each class next costs here to ``losses`` [classes]."""
        losses[self._present] += self._elimination.losses()

    def remove(self, chosen: Tensor) -> None:
        """Remove classes, as far as they are here."""
        local = self._local[chosen]
        if bool((local >= 0).any()):
            self._elimination.remove(local[local >= 0])


def _parts(found: Moments, classes: Classes) -> list[_Part]:
    """Return the parts of a reader, one per group of it, that some classes reach."""
    groups, width = found.inputs.shape[:2]
    per_group = found.reader.classes.reshape(groups, -1)
    if not np.isin(per_group, classes).any():
        return []
    weight = found.call["weight"].detach().double().reshape(groups, found.outputs.shape[1], -1)
    taps = weight.shape[2] // per_group.shape[1]
    narrow = width == per_group.shape[1] and taps > 1  # H is over channels alone
    made: list[_Part] = []
    for g in range(groups):
        present = np.flatnonzero(np.isin(classes, per_group[g]))
        if not len(present):
            continue
        positions = [np.flatnonzero(per_group[g] == c) for c in classes[present]]
        columns = np.full((len(present), max(map(len, positions))), -1)
        for row, places in enumerate(positions):
            columns[row, : len(places)] = places
        at = torch.from_numpy(columns)
        if not narrow:
            spots = torch.arange(taps)
            at = torch.where(at[:, :, None] >= 0, at[:, :, None] * taps + spots, -1).flatten(1)
        h = found.inputs[g].clone()
        h.diagonal().add_(RIDGE * h.diagonal().mean().clamp_min(1e-30))
        rows = _weighed(weight[g], found.outputs[g], taps if narrow else 1) * (found.positions / 2) ** 0.5
        elimination = Elimination(rows, torch.cholesky_inverse(torch.linalg.cholesky(h)), at)
        made.append(_Part(elimination, torch.from_numpy(present), len(classes)))
    return made


def _weighed(weight: Tensor, outputs: Tensor, taps: int) -> Tensor:
    """Return V [R, J] with V^T V = W^T G W, and with no more rows than it takes.

    Args:
        weight: W [O, J taps].
        outputs: G [O, O].
        taps: Kernel positions that count as outputs, each with the same G.
    """

    def over_channels(matrix: Tensor) -> Tensor:
        return matrix.unflatten(1, (-1, taps)).transpose(1, 2).flatten(0, 1)  # [O taps, J]

    rows = over_channels(weight)
    if len(rows) > rows.shape[1]:
        return _root(rows.T @ over_channels(outputs @ weight))
    return over_channels(_root(outputs) @ weight)


def _root(square: Tensor) -> Tensor:
    """Return R with R^T R = a symmetric, positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(square)
    return values.clamp_min(0).sqrt()[:, None] * vectors.T


def _remove(parts: Sequence[_Part], count: int) -> Scores:
    """Remove all classes of a group, cheapest first; return what each cost."""
    left = torch.ones(count, dtype=torch.bool)
    scores = np.zeros(count)
    each = -(-count // STEPS)
    reached = 0.0
    while bool(left.any()):
        losses = torch.zeros(count, dtype=torch.float64)
        for part in parts:
            part.add_losses(losses)
        losses = losses.masked_fill(~left, torch.inf)
        chosen = losses.argsort(stable=True)[: min(each, int(left.sum()))]
        for one in chosen.tolist():
            reached = max(reached, float(losses[one]))
            scores[one] = reached
        left[chosen] = False
        for part in parts:
            part.remove(chosen)
    return scores
