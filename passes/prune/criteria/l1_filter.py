"""L1 of filters, independent and greedy. Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, 3.1 to 3.4.

l1-independent  s_j = sum over input channels c, positions k of |W[j, c, k]|      all of the filter's weights
l1-greedy       the same sum over the input channels that still stand when the layer is reached

W [O, I, k...]; a filter is what makes channel j, and what reads it counts nothing (criterion ``l1`` counts both).
Groups are gone through in graph order; what a group keeps is decided before the next is scored, as it will be at the
budget asked for. Filters of coupled layers are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ....compiler.dependency import Classes, ParamSlice, Role
from .base import Bools, Context, Scores
from .weights import ElementSums, is_weight


class Independent:
    """Absolute weights of the filters, however many of their inputs are going to be removed."""

    needs_data: ClassVar[bool] = False
    fallback: ClassVar[str | None] = None
    estimates_loss: ClassVar[bool] = False

    def score(self, context: Context) -> Scores:
        """Score filters; see :class:`.base.Criterion`."""
        return context.combine(_parts(context, np.ones(context.classes, dtype=np.bool_), None))


class Greedy:
    """Absolute weights of the filters on the inputs that are left; the same as independent without a choice."""

    needs_data: ClassVar[bool] = False
    fallback: ClassVar[str | None] = None
    estimates_loss: ClassVar[bool] = False

    def score(self, context: Context) -> Scores:
        """Score filters, group by group; see :class:`.base.Criterion`."""
        scores = Independent().score(context)
        keep = np.ones(context.classes, dtype=np.bool_)
        for group in context.deps.groups:
            if context.choice is None or not group.prunable:
                continue
            if not keep.all():
                scores[group.classes] = context.combine(_parts(context, keep, group.classes))[group.classes]
            keep[group.classes] = context.choice(np.nan_to_num(scores))[group.classes]
        return scores


def _parts(context: Context, keep: Bools, only: Classes | None) -> Iterator[tuple[Classes, Scores]]:
    """Yield the sums of every filter that makes one of the classes ``only``, over the inputs in ``keep``."""
    uses = [(use, tensor) for use, tensor in context.slices() if is_weight(use)]
    reads = {use.name: use for use, _ in uses if use.role is Role.CONSUMES}
    for use, tensor in uses:
        classes = context.deps.class_of[use.atoms]
        if use.role is Role.PRODUCES and (only is None or bool(np.isin(classes, only).any())):
            read = reads.get(use.name)
            kept = None if read is None else keep[context.deps.class_of[read.atoms]]
            weights = tensor.detach().abs()
            if read is not None and kept is not None and not kept.all():
                weights = weights * _along(kept, read, weights)
            yield classes, ElementSums(torch.clone)(weights, use)


def _along(kept: Bools, read: ParamSlice, weights: Tensor) -> Tensor:
    """Return ``kept`` as a factor for the weights: [I] along the axis that is read, [g, I/g] for rows in g groups."""
    factor = torch.from_numpy(kept).to(weights)
    if kept.ndim == 2:
        factor = factor.repeat_interleave(len(weights) // len(kept), 0)
        return factor.reshape(*factor.shape, *[1] * (weights.ndim - 2))
    return factor.reshape([-1 if axis == read.axis else 1 for axis in range(weights.ndim)])
