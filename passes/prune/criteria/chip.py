"""Channel independence: how much of the feature maps' nuclear norm goes with a channel.

    s_c = ||A||_* - ||A without row c||_*        A [C, M]: a row holds one channel over all samples and positions

A channel that others make up for, a copy above all, takes little with it. Sui et al., CHIP, NeurIPS 2021, eq. 4. There
every image has a matrix of its own and C decompositions; here the maps of all images stand side by side, and one
decomposition does for all channels. Nuclear norms are traces of square roots: with
G = A A^T / M = Q diag(l) Q^T, sqrt(x) = 1/pi int_0^inf x / (x + t) dt / sqrt(t) and, for G without row and column c,
det(G_c + t) = det(G + t) [(G + t)^-1]_cc,

    s_c = 1/pi int_0^inf  (sum_k q_ck^2 l_k / (l_k + t)^2) / (sum_k q_ck^2 / (l_k + t))  dt / sqrt(t)

to all digits by the trapezoidal rule in log t. Scores are those of A / sqrt(M), so they do not grow with the data.
"""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from ....compiler.dependency import Classes
from .base import Context, Scores
from .running import Reader, activations

_NODES: Final = np.arange(-44.0, 44.5, 0.5)
"""log t, relative to the mean eigenvalue: what is left out on either side is below 1e-9."""


class Chip:
    """Loss of nuclear norm, over every tensor that is read."""

    needs_data: ClassVar[bool] = True
    fallback: ClassVar[str | None] = None
    estimates_loss: ClassVar[bool] = False

    def score(self, context: Context) -> Scores:
        """Score activations by their Gram matrices; see :class:`.base.Criterion`."""
        grams: dict[Reader, Tensor] = {}
        sizes: dict[Reader, int] = {}
        rows: dict[Reader, Classes] = {}

        def add(reader: Reader, x: Tensor) -> None:
            rows[reader], values = _maps(x.movedim(reader.axis, 0).flatten(1), reader.classes)
            wide = values.double()
            grams[reader] = wide @ wide.T + grams.get(reader, 0.0)
            sizes[reader] = sizes.get(reader, 0) + values.shape[1]

        activations(context, add)
        return context.combine((rows[r], independence(gram.numpy() / sizes[r])) for r, gram in grams.items())


def _maps(values: Tensor, classes: Classes) -> tuple[Classes, Tensor]:
    """Return classes [C] and maps [C, M].

    The rows of ``values`` that belong to one class are one map in several pieces (a flattened feature map). Where some
    classes have more rows than others, every row is a map.
    """
    found, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    if counts.min() != counts.max():
        return classes, values
    order = torch.from_numpy(np.argsort(inverse, kind="stable"))
    return found, values[order].reshape(len(found), -1)


def independence(gram: Scores) -> Scores:
    """Return s [C] for the Gram matrix [C, C] of A / sqrt(M); see the module."""
    scale = float(np.trace(gram)) / len(gram)
    if scale <= 0.0:
        return np.zeros(len(gram))
    values, vectors = np.linalg.eigh(gram / scale)
    eigenvalues, squares = np.maximum(values, 0.0)[:, None], np.square(vectors)
    t = np.exp(_NODES)
    upper = squares @ (eigenvalues / np.square(eigenvalues + t))
    lower = squares @ (1.0 / (eigenvalues + t))
    step = _NODES[1] - _NODES[0]
    integral = (upper / lower * np.sqrt(t)).sum(1) * step  # dt / sqrt(t) = sqrt(t) d log t
    return integral * np.sqrt(scale) / np.pi
