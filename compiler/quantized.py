"""Layers whose weight is stored in integers, or trained to be. Their source goes into the emitted ``model.py``.

    w[o] = weight_scale[o] * weight[o]          weight int8 [O, ...], weight_scale float [O]

The weight stays a parameter under its old name (one that takes no gradient), so that whatever counts, slices or stores
parameters treats it like any other. The arithmetic here is that of the real numbers that the integers stand for;
engines that have integer kernels are given the integers themselves (``backends/``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .functional import dequantize_channels, fake_quantize_channels


def hold_integers(layer: nn.Module) -> None:
    """Replace the weight of a new layer by an int8 one of the same shape, and give it a scale per output channel."""
    weight: Any = layer.weight
    integers = torch.zeros(weight.shape, dtype=torch.int8, device=weight.device)
    layer.weight = nn.Parameter(integers, requires_grad=False)
    layer.register_buffer("weight_scale", torch.ones(weight.shape[0], device=weight.device))


class QuantizedConv1d(nn.Conv1d):
    """``nn.Conv1d`` with an int8 weight."""

    weight_scale: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        hold_integers(self)

    def forward(self, input: Tensor) -> Tensor:
        """[N, I, L] -> [N, O, L']."""
        return self._conv_forward(input, dequantize_channels(self.weight, self.weight_scale), self.bias)


class QuantizedConv2d(nn.Conv2d):
    """``nn.Conv2d`` with an int8 weight."""

    weight_scale: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        hold_integers(self)

    def forward(self, input: Tensor) -> Tensor:
        """[N, I, H, W] -> [N, O, H', W']."""
        return self._conv_forward(input, dequantize_channels(self.weight, self.weight_scale), self.bias)


class QuantizedConv3d(nn.Conv3d):
    """``nn.Conv3d`` with an int8 weight."""

    weight_scale: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        hold_integers(self)

    def forward(self, input: Tensor) -> Tensor:
        """[N, I, D, H, W] -> [N, O, D', H', W']."""
        return self._conv_forward(input, dequantize_channels(self.weight, self.weight_scale), self.bias)


class QuantizedLinear(nn.Linear):
    """``nn.Linear`` with an int8 weight."""

    weight_scale: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        hold_integers(self)

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return F.linear(input, dequantize_channels(self.weight, self.weight_scale), self.bias)


class FakeQuantizedConv1d(nn.Conv1d):
    """``nn.Conv1d`` that computes as if its weight were in [-limit, limit] integers, and trains."""

    def __init__(self, *args: Any, limit: int = 127, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit = limit

    def forward(self, input: Tensor) -> Tensor:
        """[N, I, L] -> [N, O, L']."""
        return self._conv_forward(input, fake_quantize_channels(self.weight, self.limit), self.bias)


class FakeQuantizedConv2d(nn.Conv2d):
    """``nn.Conv2d`` that computes as if its weight were in [-limit, limit] integers, and trains."""

    def __init__(self, *args: Any, limit: int = 127, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit = limit

    def forward(self, input: Tensor) -> Tensor:
        """[N, I, H, W] -> [N, O, H', W']."""
        return self._conv_forward(input, fake_quantize_channels(self.weight, self.limit), self.bias)


class FakeQuantizedConv3d(nn.Conv3d):
    """``nn.Conv3d`` that computes as if its weight were in [-limit, limit] integers, and trains."""

    def __init__(self, *args: Any, limit: int = 127, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit = limit

    def forward(self, input: Tensor) -> Tensor:
        """[N, I, D, H, W] -> [N, O, D', H', W']."""
        return self._conv_forward(input, fake_quantize_channels(self.weight, self.limit), self.bias)


class FakeQuantizedLinear(nn.Linear):
    """``nn.Linear`` that computes as if its weight were in [-limit, limit] integers, and trains."""

    def __init__(self, *args: Any, limit: int = 127, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit = limit

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return F.linear(input, fake_quantize_channels(self.weight, self.limit), self.bias)


QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
    nn.Linear: QuantizedLinear,
}
"""Layer class -> its class with integer weights."""

FAKE_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: FakeQuantizedConv1d,
    nn.Conv2d: FakeQuantizedConv2d,
    nn.Conv3d: FakeQuantizedConv3d,
    nn.Linear: FakeQuantizedLinear,
}
"""Layer class -> its class for quantization-aware training."""
