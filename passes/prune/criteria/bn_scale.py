"""Batch-norm scale: s = |gamma|. Liu et al., Network Slimming, ICCV 2017."""

from __future__ import annotations

import numpy as np
import torch

from ....compiler.dependency import ParamSlice
from .base import PowerSums, Scores

_NORMS = frozenset({"batch_norm", "instance_norm", "group_norm", "layer_norm"})


class BatchNormScale:
    """Absolute scale of every normalisation that the channel passes; channels that pass none fall back to l1."""

    fallback: str | None = "l1"

    def __init__(self) -> None:
        self._sums = PowerSums(torch.abs)

    def score(self, tensor: torch.Tensor, use: ParamSlice, generator: np.random.Generator) -> Scores | None:
        """Score norm weights; see :class:`.base.Criterion`."""
        return self._sums(tensor, use) if use.kind in _NORMS and use.name.endswith("weight") else None
