"""The view of weights that criteria share: everything that one channel's index selects, summed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ....compiler.dependency import ParamSlice
from .base import Scores

WEIGHTED = frozenset({"conv", "conv_transpose", "linear", "embedding"})
"""Operations whose ``weight`` mixes channels."""


def is_weight(use: ParamSlice) -> bool:
    """Tell whether a slice is of a weight that mixes channels."""
    return use.kind in WEIGHTED and use.name.rpartition(".")[2] not in ("bias", "running_mean", "running_var")


class ElementSums:
    """Sums of a function of a tensor's elements over everything that a channel's index selects.

    The two axes of a weight are scored one after the other, so the values of the last tensor are kept.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, tensor: Tensor, use: ParamSlice) -> Scores:
        """Return the sums in the shape of ``use.atoms``."""
        if self._last is None or self._last[0] is not tensor:
            self._last = (tensor, self._function(tensor.detach()))
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
