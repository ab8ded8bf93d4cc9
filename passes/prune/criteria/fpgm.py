"""Distance from the geometric median: a filter near all others of its layer can be replaced by them.

    s_j = 1/(n-1) sum over the other filters k of ||W_j - W_k||_2        W [n, ...], a filter is a flattened row

He et al., Filter Pruning via Geometric Median, CVPR 2019, eq. 6; the mean in place of the sum orders alike, and lets
layers of different widths be compared. In a grouped convolution a filter is compared with those that read the same
channels; in a depthwise one there are none, and nothing is said of it.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ....compiler.dependency import ParamSlice, Role
from .base import Context, Scores, SliceCriterion
from .weights import is_weight


class GeometricMedian(SliceCriterion):
    """Mean distance of a filter from the other filters of its layer; channels without any fall back to l2."""

    fallback: ClassVar[str | None] = "l2"

    def __init__(self) -> None:
        self._groups: dict[str, int] = {}

    def score(self, context: Context) -> Scores:
        """Note which weights are grouped, then score; see :class:`.base.Criterion`."""
        uses = [use for use, _ in context.slices() if use.atoms.ndim == 2]
        self._groups = {use.name: len(use.atoms) for use in uses}
        return super().score(context)

    def of_slice(self, tensor: Tensor, use: ParamSlice, generator: np.random.Generator) -> Scores | None:
        """Score the filters that produce channels; see :class:`.base.SliceCriterion`."""
        if not is_weight(use) or use.role is not Role.PRODUCES:
            return None
        groups = self._groups.get(use.name, 1)
        data = tensor.detach().double().cpu()
        if use.axis == 0:  # conv, linear: [g a, ...]
            filters = data.reshape(groups, len(data) // groups, -1)
        else:  # conv_transpose: [g i, o, ...], embedding: [V, D]
            filters = data.reshape(groups, len(data) // groups, data.shape[1], -1).transpose(1, 2).flatten(2)
        count = filters.shape[1]
        if count < 2:
            return None
        distances = torch.cdist(filters, filters).sum(2) / (count - 1)
        return distances.numpy().reshape(use.atoms.shape)
