"""Uniform noise: the control."""

from __future__ import annotations

import numpy as np
import torch

from ....compiler.dependency import ParamSlice, Role
from .base import Scores


class Random:
    """Independent uniform scores, the same for the same seed."""

    fallback: str | None = None

    def score(self, tensor: torch.Tensor, use: ParamSlice, generator: np.random.Generator) -> Scores | None:
        """Draw scores for producers; see :class:`.base.Criterion`."""
        return generator.random(use.atoms.shape) if use.role is Role.PRODUCES else None
