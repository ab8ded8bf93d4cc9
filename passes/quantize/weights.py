"""Integer weights: per output channel, symmetric.

    scale[o] = max |W[o]| / limit      q = clamp(round(W / scale), -limit, limit)      limit 127, or 63 for 7 bits

Analytic bias correction: rounding shifts the mean of the output by (W_q - W) E[x], which the bias takes back (Nagel
et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019, eq. 9). E[x] is the mean of
the input channels over calibration data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...compiler.layers import layer_class
from ...compiler.quantized import FAKE_QUANTIZED, QUANTIZED
from ..edit import copy_layer


def quantize_weight(weight: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the int8 weight and its scales, float32 [O]."""
    wide = weight.detach().double().flatten(1)
    scale = (wide.abs().amax(1) / limit).float()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    integers = torch.round(wide / scale.double()[:, None]).clamp(-limit, limit)
    return integers.reshape(weight.shape).to(torch.int8), scale


def bias_shift(weight: Tensor, integers: Tensor, scale: Tensor, mean: Tensor, groups: int) -> Tensor:
    """Return (W_q - W) E[x], float64 [O]; ``mean`` is E[x] of all input channels."""
    error = integers.double() * scale.double().reshape(-1, *[1] * (weight.ndim - 1)) - weight.detach().double()
    by_input = error.flatten(2).sum(2) if weight.ndim > 2 else error  # [O, I / g]
    rows = by_input.reshape(groups, -1, by_input.shape[1])
    return (rows * mean.double().reshape(groups, 1, -1)).sum(2).reshape(-1)


def fake_layer(layer: Any, limit: int) -> nn.Module:
    """Return a layer like ``layer`` that computes as if its weight were quantized, and trains."""
    made: Any = copy_layer(layer)
    made.__class__ = FAKE_QUANTIZED[layer_class(type(layer))]
    made.limit = limit
    return made


def quantized_layer(layer: Any, integers: Tensor, scale: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a layer like ``layer`` with an int8 weight."""
    made: Any = copy_layer(layer)
    made.__class__ = QUANTIZED[layer_class(type(layer))]
    made._parameters["weight"] = nn.Parameter(integers.to(layer.weight.device), requires_grad=False)
    if bias is not None:
        made._parameters["bias"] = nn.Parameter(bias.to(layer.weight.device, layer.weight.dtype))
    made.register_buffer("weight_scale", scale.to(layer.weight.device))
    return made
