"""Helper functions that a captured graph may call. Their source is copied into the emitted ``model.py``: torch only."""

from __future__ import annotations

import torch
from torch import Tensor, fx


def stochastic_depth(input: Tensor, p: float, mode: str, training: bool) -> Tensor:
    """Drop whole samples ("row") or the whole batch ("batch") with probability ``p`` in training; identity otherwise.

    The survivors are scaled by 1 / (1 - p). Huang et al., Deep Networks with Stochastic Depth, ECCV 2016.
    """
    if not training or p == 0.0:
        return input
    shape = [input.shape[0] if mode == "row" else 1] + [1] * (input.ndim - 1)
    survives = torch.empty(shape, dtype=input.dtype, device=input.device).bernoulli_(1.0 - p)
    return input * (survives if p == 1.0 else survives.div_(1.0 - p))


fx.wrap("stochastic_depth")
