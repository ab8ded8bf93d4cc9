"""Random weights that let signals through: what the proof uses where the model's own weights do not.

A model at its initial state, or one whose features have died, may answer every input alike; comparing such answers
proves nothing. The equality that is to be proven holds for all weights, so it may as well be checked with these.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .program import Program


def random_state(program: Program, generator: torch.Generator, gain: float = 1.0) -> dict[str, Tensor]:
    """Return a float64 value for every real tensor of a program, by name; tensors that are shared stay shared.

    Weights are normal with variance gain^2 2 / fan-in, scales and variances uniform in [0.5, 1.5], everything else
    small.
    """
    made: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in program.tensors():
        if tensor.is_floating_point():
            if id(tensor) not in made:
                made[id(tensor)] = _draw(name, tensor, generator, gain)
            state[name] = made[id(tensor)]
    return state


def _draw(name: str, tensor: Tensor, generator: torch.Generator, gain: float) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    if tensor.ndim >= 2 and tensor.numel() > tensor.shape[0]:
        return noise * gain * math.sqrt(2.0 * tensor.shape[0] / tensor.numel())
    if name.endswith(("weight", "running_var")) or tensor.ndim >= 2:
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
    return 0.2 * noise
