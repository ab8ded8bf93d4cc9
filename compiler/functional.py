"""Helper functions that a graph may call. Their source is copied into the emitted ``model.py``: torch only."""

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


def quantize(input: Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> Tensor:
    """Map real numbers to integers, q = round(x / scale) + zero_point, clamped to the range of ``dtype``.

    ``dtype`` is ``torch.uint8`` or ``torch.int8``; halves are rounded to even. Jacob et al., Quantization and Training
    of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018, section 2.1.
    """
    limits = torch.iinfo(dtype)
    return (torch.round(input / scale) + zero_point).clamp(limits.min, limits.max).to(dtype)


def dequantize(input: Tensor, scale: float, zero_point: int) -> Tensor:
    """Map integers back to the real numbers that they stand for, x = scale * (q - zero_point)."""
    return (input.to(torch.get_default_dtype()) - zero_point) * scale


def dequantize_channels(weight: Tensor, scale: Tensor) -> Tensor:
    """Map an integer weight [O, ...] to real numbers, w[o] = scale[o] * q[o]: symmetric, a scale per output channel."""
    return weight.to(scale.dtype) * scale.reshape(-1, *[1] * (weight.ndim - 1))


HELPERS = (stochastic_depth, quantize, dequantize, dequantize_channels)
for _helper in HELPERS:
    fx.wrap(_helper.__name__)
