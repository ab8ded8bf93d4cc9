"""L2 norm: s = sqrt(sum w^2) over all weights of a channel. He et al., Soft Filter Pruning, IJCAI 2018 (eq. 2, p = 2)."""

from __future__ import annotations

import numpy as np
import torch

from ....compiler.dependency import ParamSlice
from .base import Scores, is_weight, slice_norm


class L2:
    """Euclidean norm over output rows and input columns alike."""

    fallback: str | None = None

    def score(self, tensor: torch.Tensor, use: ParamSlice, generator: np.random.Generator) -> Scores | None:
        """Score weights; see :class:`.base.Criterion`."""
        return slice_norm(tensor, use, 2.0) if is_weight(use) else None
