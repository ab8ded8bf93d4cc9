"""L1 norm: s = sum |w| over all weights of a channel. Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017."""

from __future__ import annotations

import numpy as np
import torch

from ....compiler.dependency import ParamSlice
from .base import Scores, SliceCriterion
from .weights import ElementSums, is_weight


class L1(SliceCriterion):
    """Sum of absolute values over output rows and input columns alike."""

    def __init__(self) -> None:
        self._sums = ElementSums(torch.abs)

    def of_slice(self, tensor: torch.Tensor, use: ParamSlice, generator: np.random.Generator) -> Scores | None:
        """Score weights; see :class:`.base.SliceCriterion`."""
        return self._sums(tensor, use) if is_weight(use) else None
