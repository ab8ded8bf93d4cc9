"""Learning rates: a function of the step and of nothing else, so that a resumed run needs no state of a schedule.

constant    lr
step        lr gamma^floor(e / step_size)
multistep   lr gamma^(number of milestones <= e)
exp         lr gamma^e
cosine      lr (1 + cos(pi t)) / 2                                       Loshchilov and Hutter, ICLR 2017
onecycle    lr/25 up to lr over the first 30 %, then down to lr/250,000, in half cosines    Smith and Topin, 2019

``e`` counts finished epochs, ``t`` is the share of all steps after the warm-up. During the warm-up the rate rises in a
straight line to what the policy says at its end.
"""

from __future__ import annotations

import math
from typing import Final

from .recipe import Recipe

_START, _END, _RISE = 25.0, 250_000.0, 0.3
_EPSILON: Final = 1e-9


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step.

    Args:
        recipe: Policy and numbers.
        step: Steps before this one, over all epochs.
        steps_per_epoch: Optimizer steps in each epoch.
    """
    total = recipe.epochs * steps_per_epoch
    warm = round(recipe.warmup * steps_per_epoch)
    if step < warm:
        return recipe.lr * _factor(recipe, warm, warm, total, steps_per_epoch) * (step + 1) / warm
    return recipe.lr * _factor(recipe, step, warm, total, steps_per_epoch)


def milestones(recipe: Recipe) -> list[int]:
    """Return the finished epochs at which ``multistep`` lowers the rate; fractions are rounded."""
    return [round(m * recipe.epochs) if m < 1 else round(m) for m in recipe.milestones]


def _factor(recipe: Recipe, step: int, warm: int, total: int, steps_per_epoch: int) -> float:
    epoch = step // steps_per_epoch
    share = (step - warm) / max(1, total - warm)
    if recipe.schedule == "step":
        return recipe.gamma ** math.floor(epoch / recipe.step_size + _EPSILON)
    if recipe.schedule == "multistep":
        return recipe.gamma ** sum(m <= epoch for m in milestones(recipe))
    if recipe.schedule == "exp":
        return recipe.gamma**epoch
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * share)) / 2
    if recipe.schedule == "onecycle":
        if share < _RISE:
            return _between(1 / _START, 1.0, share / _RISE)
        return _between(1.0, 1 / _END, (share - _RISE) / (1 - _RISE))
    return 1.0


def _between(start: float, end: float, share: float) -> float:
    """Half a cosine from one number to another."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
