"""Uniform noise: the control."""

from __future__ import annotations

import numpy as np
import torch

from ....compiler.dependency import ParamSlice, Role
from .base import Scores, SliceCriterion


class Random(SliceCriterion):
    """Independent uniform scores, the same for the same seed."""

    def of_slice(self, tensor: torch.Tensor, use: ParamSlice, generator: np.random.Generator) -> Scores | None:
        """Draw scores for producers; see :class:`.base.SliceCriterion`."""
        return generator.random(use.atoms.shape) if use.role is Role.PRODUCES else None
