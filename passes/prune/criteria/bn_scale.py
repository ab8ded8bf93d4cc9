"""Batch-norm scale: s = |gamma|. Liu et al., Network Slimming, ICCV 2017."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from ....compiler.dependency import ParamSlice
from .base import Scores, SliceCriterion
from .weights import ElementSums

_NORMS = frozenset({"batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"})


class BatchNormScale(SliceCriterion):
    """Absolute scale of every normalisation that the channel passes; channels that pass none fall back to l1."""

    fallback: ClassVar[str | None] = "l1"

    def __init__(self) -> None:
        self._sums = ElementSums(torch.abs)

    def of_slice(self, tensor: torch.Tensor, use: ParamSlice, generator: np.random.Generator) -> Scores | None:
        """Score norm weights; see :class:`.base.SliceCriterion`."""
        return self._sums(tensor, use) if use.kind in _NORMS and use.name.endswith("weight") else None
