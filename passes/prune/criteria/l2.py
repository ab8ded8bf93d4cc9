"""L2 norm: s = sqrt(sum w^2) over a channel's weights. He et al., Soft Filter Pruning, IJCAI 2018, eq. 2."""

from __future__ import annotations

import numpy as np
import torch

from ....compiler.dependency import ParamSlice
from .base import Scores, SliceCriterion
from .weights import ElementSums, is_weight


class L2(SliceCriterion):
    """Euclidean norm over output rows and input columns alike."""

    def __init__(self) -> None:
        self._sums = ElementSums(torch.square)

    def of_slice(self, tensor: torch.Tensor, use: ParamSlice, generator: np.random.Generator) -> Scores | None:
        """Score weights; see :class:`.base.SliceCriterion`."""
        return np.sqrt(self._sums(tensor, use)) if is_weight(use) else None
