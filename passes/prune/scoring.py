"""Scores per channel class: a criterion's, made comparable between groups where that is asked for.

group       s                        global choices divide by the mean of the group (``selection``)
none        s
isomorphic  s / mean of s over all groups of the same kind. Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024
lamp        s_c^2 / sum_{k: s_k >= s_c} s_k^2, over the channels k of the group. Lee et al., Layer-adaptive Sparsity for
            the Magnitude-based Pruning, ICLR 2021, eq. 3: a group's strongest channel has 1, and outlives all others

Within a group all of them keep the order of the channels.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from ...compiler.dependency import ChannelDependencies
from .criteria import criterion
from .criteria.base import Context, Scores

Normalize = Literal["group", "none", "isomorphic", "lamp"]
Kind = frozenset[tuple[tuple[str, int, str], int]]
"""What a group's channels touch: (operation, axis, role) -> how many slices."""


def score_classes(context: Context, name: str, normalize: Normalize = "group") -> Scores:
    """Score every channel class by the named criterion.

    Args:
        context: What the criterion may look at.
        name: See ``secateur list criteria``.
        normalize: See the module.

    Returns:
        [classes], non-negative and finite; 0 for classes that nothing is said about.
    """
    return normalized(np.nan_to_num(_scores(context, name)), context.deps, normalize)


def _scores(context: Context, name: str) -> Scores:
    scorer = criterion(name)
    with torch.inference_mode(False):  # tensors made in inference mode take no gradients ever after
        scores = scorer.score(context)
    silent = np.isnan(scores)
    if scorer.fallback is not None and silent.any():
        scores = np.where(silent, _scores(context, scorer.fallback), scores)
    return scores


def normalized(scores: Scores, deps: ChannelDependencies, normalize: Normalize) -> Scores:
    """Return the scores made comparable between groups; see the module."""
    result = scores.copy()
    if normalize == "lamp":
        for group in deps.groups:
            result[group.classes] = _lamp(scores[group.classes])
    elif normalize == "isomorphic":
        members: dict[Kind, list[npt.NDArray[np.int64]]] = {}
        for group, kind in zip(deps.groups, kinds(deps), strict=True):
            members.setdefault(kind, []).append(group.classes)
        for groups in members.values():
            classes = np.concatenate(groups)
            result[classes] = scores[classes] / (scores[classes].mean() or 1.0)
    return result


def kinds(deps: ChannelDependencies) -> list[Kind]:
    """Return the kind of every group: groups of one kind are built alike, whatever their widths."""
    count = int(deps.class_of.max()) + 1 if len(deps.class_of) else 0
    owner = np.full(count, -1, dtype=np.int64)
    for index, group in enumerate(deps.groups):
        owner[group.classes] = index
    touched: list[Counter[tuple[str, int, str]]] = [Counter() for _ in deps.groups]
    for use in deps.slices:
        for index in np.unique(owner[deps.class_of[use.atoms.ravel()]]).tolist():
            if index >= 0:
                touched[index][use.kind, use.axis, use.role.value] += 1
    return [frozenset(found.items()) for found in touched]


def _lamp(scores: Scores) -> Scores:
    squares = np.square(scores)
    ascending = np.sort(squares)
    tails = np.cumsum(ascending[::-1])[::-1]  # tails[i] = sum of ascending[i:]
    total = tails[np.searchsorted(ascending, squares, side="left")]  # equal scores share the longest tail
    return np.divide(squares, total, out=np.zeros_like(squares), where=total > 0)
