"""What a criterion is, and the view of weights that the magnitude criteria share."""

from __future__ import annotations

from collections.abc import Callable
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


class PowerSums:
    """Sums of a power of a tensor's elements over everything that a channel's index selects.

    The two axes of a weight are scored one after the other, so the powers of the last tensor are kept.
    """

    def __init__(self, power: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._power = power
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, tensor: torch.Tensor, use: ParamSlice) -> Scores:
        """Return the sums in the shape of ``use.atoms``."""
        if self._last is None or self._last[0] is not tensor:
            self._last = (tensor, self._power(tensor.detach()))
        data = self._last[1]
        if use.atoms.ndim == 2:  # [g a, b, k...]: the channels of group j are columns of its rows
            sums = data.reshape(len(use.atoms), -1, *data.shape[1:]).sum(1).flatten(2).sum(2)
        elif use.axis == 0:
            sums = data.flatten(1).sum(1) if data.ndim > 1 else data
        else:
            sums = data.sum(0)
            for _ in range(1, use.axis):
                sums = sums.sum(0)
            sums = sums.flatten(1).sum(1) if sums.ndim > 1 else sums
        return sums.double().cpu().numpy()
