"""L1 norm: s = sum |w| over all weights of a channel. Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017."""

from __future__ import annotations

import numpy as np
import torch

from ....compiler.dependency import ParamSlice
from .base import Scores, is_weight, slice_norm


class L1:
    """Sum of absolute values over output rows and input columns alike."""

    fallback: str | None = None

    def score(self, tensor: torch.Tensor, use: ParamSlice, generator: np.random.Generator) -> Scores | None:
        """Score weights; see :class:`.base.Criterion`."""
        return slice_norm(tensor, use, 1.0) if is_weight(use) else None
