"""Statistics of activations, over samples and positions, where they are read: behind the nonlinearity.

apoz             s = 1 - APoZ, the share of a channel's values that are not zero. Hu et al., Network Trimming, 2016
mean-activation  s = mean |x|. Molchanov et al., Pruning Convolutional Neural Networks, ICLR 2017, section 2.2

APoZ tells nothing of nets whose nonlinearity has no zeros (SiLU, GELU).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from .base import Context, Scores
from .running import Reader, activations


class _Statistic(ABC):
    needs_data: ClassVar[bool] = True
    fallback: ClassVar[str | None] = None
    estimates_loss: ClassVar[bool] = False

    def score(self, context: Context) -> Scores:
        """Average over everything that is read; see :class:`.base.Criterion`."""
        sums: dict[Reader, Tensor] = {}
        sizes: dict[Reader, int] = {}

        def add(reader: Reader, x: Tensor) -> None:
            values = x.movedim(reader.axis, 0).flatten(1)  # [C, samples and positions]
            sums[reader] = self.of_values(values) + sums.get(reader, 0.0)
            sizes[reader] = sizes.get(reader, 0) + values.shape[1]

        activations(context, add)
        return context.combine((reader.classes, (sums[reader] / sizes[reader]).numpy()) for reader in sums)

    @abstractmethod
    def of_values(self, values: Tensor) -> Tensor:
        """Sum the statistic over the last axis: [C, M] -> float64 [C]."""


class NotZero(_Statistic):
    """Share of values that are not zero."""

    def of_values(self, values: Tensor) -> Tensor:
        """Count what is not zero."""
        return values.count_nonzero(1).double()


class MeanActivation(_Statistic):
    """Mean absolute value."""

    def of_values(self, values: Tensor) -> Tensor:
        """Sum absolute values."""
        return values.abs().double().sum(1)
