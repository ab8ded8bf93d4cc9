"""L1 norm: s = sum |w| over all weights of a channel. Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017."""

from __future__ import annotations

import numpy as np
import torch

from ....compiler.dependency import ParamSlice
from .base import PowerSums, Scores, is_weight


class L1:
    """Sum of absolute values over output rows and input columns alike."""

    fallback: str | None = None

    def __init__(self) -> None:
        self._sums = PowerSums(torch.abs)

    def score(self, tensor: torch.Tensor, use: ParamSlice, generator: np.random.Generator) -> Scores | None:
        """Score weights; see :class:`.base.Criterion`."""
        return self._sums(tensor, use) if is_weight(use) else None
