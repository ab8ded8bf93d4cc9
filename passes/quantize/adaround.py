"""Learned rounding: whether a weight goes up or down is chosen for what its layer computes, not for its own error.

    W_q = s clamp(floor(W / s) + h(V), -limit, limit)        h(V) = clamp(1.2 sigmoid(V) - 0.1, 0, 1)

    minimise over V    |f(x, W) - f(x, W_q)|^2 / |f(x, W) - f(x, W_nearest)|^2  +  R mean(1 - |2 h(V) - 1|^beta)

The second term pulls every h to 0 or 1: not at all at first, then ever harder while beta falls. V starts where W_q = W,
which rounds to nearest. Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020,
eq. 21 to 24; the division by the error of rounding to nearest is ours, and makes one R fit all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

Operation = Callable[[Tensor, Tensor], Tensor]
"""What a layer computes: (inputs, weight) -> outputs, samples along the first axis of both."""

STRETCH: Final = (-0.1, 1.1)
"""gamma and zeta: the sigmoid is stretched beyond [0, 1] and cut, so that h reaches both ends."""
BETA: Final = (20.0, 2.0)
"""First and last exponent of the regulariser."""
WARM_UP: Final = 0.2
"""Fraction of the steps without regulariser."""
REGULARISER: Final = 30.0
"""Found on the layers of a ResNet-20 at 4 bits; from 10 to 100 it makes little difference, below 3 too few h settle."""
RATE: Final = 0.1
"""Of Adam. V has a few units to go, in about a thousand steps."""
BATCH: Final = 32
"""Samples of one step."""


def adaround(
    weight: Tensor,
    scale: Tensor,
    limit: int,
    inputs: Tensor,
    operation: Operation,
    *,
    steps: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Round a weight so that ``operation`` gives what it gives with the float weight.

    Args:
        weight: Float [O, ...].
        scale: Of every output channel, [O], as ``quantize_weight`` returns it.
        limit: The largest integer: 127 for 8 bits.
        inputs: What the layer reads on calibration data, [N, ...].
        operation: What the layer computes with a given weight; differentiable in it.
        steps: Of Adam, each on BATCH samples.
        seed: Of the choice of samples.

    Returns:
        The integers, int8 [O, ...]: each the next one below or above its weight, within the limit. On ``inputs`` they
        reconstruct the layer's outputs no worse than rounding to nearest does.
    """
    with torch.inference_mode(False), torch.enable_grad():
        weight = weight.detach()
        ratio = weight.double() / scale.double().reshape(-1, *[1] * (weight.ndim - 1))
        step = scale.to(weight.dtype).reshape(-1, *[1] * (weight.ndim - 1))
        nearest = ratio.round().clamp(-limit, limit)
        with torch.no_grad():
            targets = torch.cat([operation(x, weight) for x in inputs.split(BATCH)])
        unit = _error(inputs, targets, nearest, step, operation)
        if unit == 0.0:
            return nearest.to(torch.int8)
        below = ratio.floor()
        v = _inverse(ratio - below).to(weight.dtype).requires_grad_()
        below = below.to(weight.dtype)
        optimizer = torch.optim.Adam([v], lr=RATE)
        generator = torch.Generator().manual_seed(seed)
        for number in range(steps):
            chosen = torch.randint(len(inputs), (BATCH,), generator=generator).to(inputs.device)
            h = _rectified(v)
            outputs = operation(inputs[chosen], (below + h).clamp(-limit, limit) * step)
            loss = (outputs - targets[chosen]).square().mean() / unit + _regulariser(h, number / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        learned = (below + (_rectified(v.detach()) >= 0.5)).clamp(-limit, limit)
        better = _error(inputs, targets, learned, step, operation) < unit
    return (learned if better else nearest).to(torch.int8)


def _rectified(v: Tensor) -> Tensor:
    """Return h(V), in [0, 1]."""
    low, high = STRETCH
    return (torch.sigmoid(v) * (high - low) + low).clamp(0.0, 1.0)


def _inverse(h: Tensor) -> Tensor:
    """Return the V of an h in [0, 1]."""
    low, high = STRETCH
    return torch.logit((h - low) / (high - low))


def _regulariser(h: Tensor, progress: float) -> Tensor | float:
    """Return the second term; ``progress`` is in [0, 1)."""
    if progress < WARM_UP:
        return 0.0
    first, last = BETA
    beta = first + (last - first) * (progress - WARM_UP) / (1.0 - WARM_UP)
    return REGULARISER * (1.0 - (2.0 * h - 1.0).abs().pow(beta)).mean()


@torch.no_grad()
def _error(inputs: Tensor, targets: Tensor, integers: Tensor, step: Tensor, operation: Operation) -> float:
    """Return the mean squared error that these integers make."""
    weight = integers.to(step.dtype) * step
    total = sum(
        float((operation(x, weight) - y).square().sum(dtype=torch.float64))
        for x, y in zip(inputs.split(BATCH), targets.split(BATCH), strict=True)
    )
    return total / targets.numel()
