"""Scores per channel class: the mean over every tensor slice that the class touches."""

from __future__ import annotations

import numpy as np

from ...compiler.dependency import ChannelDependencies
from ...compiler.program import Program
from .criteria import criterion
from .criteria.base import Scores


def score_classes(program: Program, deps: ChannelDependencies, name: str, seed: int) -> Scores:
    """Score every channel class of the analysis by the named criterion.

    A slice that holds a channel several times (a flattened feature map) counts with all of its positions.
    """
    scorer = criterion(name)
    count = int(deps.class_of.max()) + 1 if len(deps.class_of) else 0
    total, seen = np.zeros(count), np.zeros(count)
    generator = np.random.default_rng(seed)
    for use in deps.slices:
        if use.name in deps.shared:
            continue
        scores = scorer.score(program.attribute(use.name), use, generator)
        if scores is not None:
            classes = deps.class_of[use.atoms.ravel()]
            np.add.at(total, classes, scores.ravel())
            np.add.at(seen, classes, 1.0)
    result = np.divide(total, seen, out=np.zeros(count), where=seen > 0)
    if scorer.fallback and (seen == 0).any():
        result = np.where(seen > 0, result, score_classes(program, deps, scorer.fallback, seed))
    return result
