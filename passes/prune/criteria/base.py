"""What a criterion is, and the view of weights that the magnitude criteria share."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ....compiler.dependency import ParamSlice

Scores = npt.NDArray[np.float64]

WEIGHTED = frozenset({"conv", "conv_transpose", "linear", "embedding"})
"""Operations whose ``weight`` mixes channels."""


class Criterion(Protocol):
    """Scores channels; higher means more important."""

    fallback: str | None
    """Criterion for channels that this one says nothing about (a net without batch norm); ``None`` for none."""

    def score(self, tensor: torch.Tensor, use: ParamSlice, generator: np.random.Generator) -> Scores | None:
        """Score the channels along one axis of one tensor.

        Args:
            tensor: The parameter or buffer.
            use: Which axis of it is indexed by which channels, and what for. ``use.atoms`` is a vector, or
                (groups, channels per group) for axis 1 of a grouped convolution's weight.
            generator: Seeded noise, for criteria that need it.

        Returns:
            Non-negative scores in the shape of ``use.atoms``; ``None`` to leave this slice out.
        """
        ...


def is_weight(use: ParamSlice) -> bool:
    """Tell whether a slice is of a weight that mixes channels."""
    return use.kind in WEIGHTED and use.name.rpartition(".")[2] not in ("bias", "running_mean", "running_var")


def slice_norm(tensor: torch.Tensor, use: ParamSlice, order: float) -> Scores:
    """Return the ``order``-norm of everything that a channel's index selects in the tensor."""
    data = tensor.detach()
    if use.atoms.ndim == 2:  # [g * a, b, k...] -> [g, a, b, k...]: the channels of group j are columns of its rows
        data = data.reshape(len(use.atoms), -1, *data.shape[1:])
        dims = [d for d in range(data.ndim) if d not in (0, 2)]
    else:
        dims = [d for d in range(data.ndim) if d != use.axis]
    norm = torch.linalg.vector_norm(data, ord=order, dim=dims) if dims else data.abs()
    return norm.cpu().numpy().astype(np.float64)
