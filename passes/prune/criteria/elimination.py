"""Least squares with columns taken away, class by class: the optimal brain surgeon on whole blocks of columns.

    loss_c = tr(V_c (H^-1)_cc^-1 V_c^T)              V_c [R, k], (H^-1)_cc [k, k]

    V    <-  V - V_c (H^-1)_cc^-1 (H^-1)_c:          H^-1  <-  H^-1 - (H^-1):c (H^-1)_cc^-1 (H^-1)_c:

which leaves zeros where c was. Columns are held class by class, so that no step has to gather them: a class with fewer
than k has columns of zeros, unrelated to all others. What is gone is only now and then cut out.

Hassibi and Stork, Optimal Brain Surgeon, NIPS 1993; Kurtic et al., The Optimal BERT Surgeon, EMNLP 2022, eq. 3 and 5.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

MOST_GONE: Final = 4
"""What is gone is cut out as soon as it is one class in so many."""


class Elimination:
    """A weight and the classes of its columns that are left.

    Args:
        weight: V [R, J]: float64.
        inverse: H^-1 [J, J].
        columns: Per class: its columns [m, k], filled up with -1 where it has fewer.
    """

    def __init__(self, weight: Tensor, inverse: Tensor, columns: Tensor) -> None:
        self._count, self._width = columns.shape
        rest = torch.ones(len(inverse), dtype=torch.bool)
        rest[columns[columns >= 0]] = False
        order = torch.cat([columns.ravel(), rest.nonzero().ravel()])
        filling, at = order < 0, order.clamp_min(0)
        self._weight = weight.T[at].masked_fill_(filling[:, None], 0.0)
        """V^T, blocks of k rows first."""
        self._inverse = inverse[at][:, at].masked_fill_(filling[:, None] | filling, 0.0)
        self._inverse.diagonal()[filling] = 1.0
        self._classes = torch.arange(self._count)
        """Of the blocks."""
        self._gone = torch.zeros(self._count, dtype=torch.bool)
        """Which blocks."""

    def losses(self) -> Tensor:
        """Return the loss of removing each class next: [m], 0 for those that are gone."""
        found = torch.zeros(self._count, dtype=torch.float64)
        blocks, width = len(self._classes), self._width
        rows, own = self._weight[: blocks * width], self._inverse[: blocks * width, : blocks * width]
        if width == 1:
            lost = torch.linalg.vector_norm(rows, dim=1).square() / own.diagonal().where(~self._gone, 1.0)
        else:
            inner = own.unflatten(1, (blocks, width)).unflatten(0, (blocks, width)).diagonal(dim1=0, dim2=2)
            inner = inner.movedim(-1, 0).where(~self._gone[:, None, None], torch.eye(width, dtype=own.dtype))
            rows = rows.unflatten(0, (blocks, width))
            squares = rows @ rows.transpose(1, 2)  # [m, k, k]
            lost = torch.linalg.solve(inner, squares).diagonal(dim1=1, dim2=2).sum(1)
        found[self._classes] = lost.masked_fill(self._gone, 0.0)
        return found

    def remove(self, classes: Tensor) -> None:
        """Remove classes and refit what is left."""
        blocks = torch.isin(self._classes, classes).nonzero()
        at = (blocks * self._width + torch.arange(self._width)).ravel()
        rows = self._inverse[at]
        solved = torch.linalg.solve(rows[:, at], rows)  # [k, J]
        self._weight.addmm_(solved.T, self._weight[at], alpha=-1.0)
        self._inverse.addmm_(rows.T, solved, alpha=-1.0)
        self._gone[blocks.ravel()] = True
        if MOST_GONE * int(self._gone.sum()) >= len(self._gone):
            self._cut()

    def _cut(self) -> None:
        """Forget what is gone."""
        stay = torch.ones(len(self._inverse), dtype=torch.bool)
        stay[: len(self._gone) * self._width] = ~self._gone.repeat_interleave(self._width)
        self._weight, self._inverse = self._weight[stay], self._inverse[stay][:, stay]
        self._classes, self._gone = self._classes[~self._gone], self._gone[~self._gone]
