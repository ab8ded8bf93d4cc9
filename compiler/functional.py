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


def fake_quantize(input: Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> Tensor:
    """Return ``dequantize(quantize(x))`` with gradients passed straight through where x is inside the range.

    Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, arXiv 1308.3432; Jacob et al., CVPR
    2018, section 3.
    """
    limits = torch.iinfo(dtype)
    return torch.fake_quantize_per_tensor_affine(input, scale, zero_point, limits.min, limits.max)


def fake_quantize_channels(weight: Tensor, limit: int) -> Tensor:
    """Return a weight [O, ...] as integers in [-limit, limit] would stand for it, one scale per output channel.

    The scales follow the weight: max |w[o]| / limit. Gradients are passed straight through.
    """
    scale = weight.detach().flatten(1).abs().amax(1).clamp_min(1e-30) / limit
    zeros = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -limit, limit)


def put(input: Tensor, value: Tensor | float, index: tuple[slice, ...]) -> Tensor:
    """Return a tensor with other values at ``index``: ``x[index] = value``, on a copy."""
    result = input.clone()
    result[index] = value
    return result


def returned_in_evaluation(input: Tensor) -> Tensor:
    """Mark what a model returns in evaluation mode; what follows is computed in training only.

    To whoever runs a graph node by node this gives back its input. See :mod:`.auxiliary`.
    """
    return input


HELPERS = (
    stochastic_depth,
    put,
    returned_in_evaluation,
    quantize,
    dequantize,
    dequantize_channels,
    fake_quantize,
    fake_quantize_channels,
)
for _helper in HELPERS:
    fx.wrap(_helper.__name__)
