"""Operations that stand for ONNX operators in an exported graph, and what the exporter writes for each.

    secateur::quantize(x, s, z)               ->  QuantizeLinear(x, s, z)
    secateur::dequantize(q, s, z)             ->  DequantizeLinear(q, s, z)
    secateur::dequantize_axis(q, s, z, axis)  ->  DequantizeLinear(q, s, z, axis)     s, z of shape [O]
    secateur::global_average_pool(x)          ->  GlobalAveragePool(x)                [N, C, H, W] -> [N, C, 1, 1]

An operation of its own keeps torch.export and the exporter from looking inside, and so from folding integers away.

What ONNX Runtime needs to run QDQ in integers (``core/optimizer/qdq_transformer``): a zero point on every
DequantizeLinear (without one on the weight, Gemm stays real), the bias as int32 with the scale s_x s_w[o], and
GlobalAveragePool, where torch's exporter writes ReduceMean, which has no integer kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from ...compiler import functional
from .lower import Site

_LIBRARY: Final = torch.library.Library("secateur", "DEF")
_LIBRARY.define("quantize(Tensor x, Tensor scale, Tensor zero_point) -> Tensor")
_LIBRARY.define("dequantize(Tensor q, Tensor scale, Tensor zero_point) -> Tensor")
_LIBRARY.define("dequantize_axis(Tensor q, Tensor scale, Tensor zero_point, int axis) -> Tensor")
_LIBRARY.define("global_average_pool(Tensor x) -> Tensor")


def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return functional.quantize(x, float(scale), int(zero_point), zero_point.dtype)


def _dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return (q.to(scale.dtype) - zero_point.to(scale.dtype)) * scale


def _dequantize_axis(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    shape = [-1 if i == axis else 1 for i in range(q.ndim)]
    return (q.to(scale.dtype) - zero_point.to(scale.dtype).reshape(shape)) * scale.reshape(shape)


def _global_average_pool(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


for _name, _kernel in (
    ("quantize", _quantize),
    ("dequantize", _dequantize),
    ("dequantize_axis", _dequantize_axis),
    ("global_average_pool", _global_average_pool),
):
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")

torch.library.register_fake("secateur::quantize", lambda x, s, z: torch.empty_like(x, dtype=z.dtype), lib=_LIBRARY)
torch.library.register_fake("secateur::dequantize", lambda q, s, z: torch.empty_like(q, dtype=s.dtype), lib=_LIBRARY)
torch.library.register_fake(
    "secateur::dequantize_axis", lambda q, s, z, axis: torch.empty_like(q, dtype=s.dtype), lib=_LIBRARY
)
torch.library.register_fake(
    "secateur::global_average_pool", lambda x: x.new_empty((x.shape[0], x.shape[1], 1, 1)), lib=_LIBRARY
)

_OPS: Final = torch.ops.secateur
_INT32: Final = torch.iinfo(torch.int32)


class OnnxDialect:
    """The words of :mod:`.lower` for ONNX. Scales and zero points become tensors, as ONNX wants them."""

    def __init__(self) -> None:
        self._constants = 0

    def quantize(self, site: Site, x: fx.Node, scale: float, zero_point: int, dtype: torch.dtype) -> fx.Node:
        """QuantizeLinear."""
        return site.call(_OPS.quantize.default, x, *self._grid(site, scale, zero_point, dtype))

    def dequantize(self, site: Site, q: fx.Node, scale: float, zero_point: int, dtype: torch.dtype) -> fx.Node:
        """DequantizeLinear."""
        return site.call(_OPS.dequantize.default, q, *self._grid(site, scale, zero_point, dtype))

    def weight(self, site: Site, path: str, layer: nn.Module) -> fx.Node:
        """DequantizeLinear along axis 0; the file holds the int8 weight itself."""
        scale = layer.get_buffer("weight_scale")
        zeros = site.constant(f"{path}.weight_zero_point", torch.zeros(len(scale), dtype=torch.int8))
        stored = site.read(f"{path}.weight"), site.read(f"{path}.weight_scale")
        return site.call(_OPS.dequantize_axis.default, *stored, zeros, 0)

    def bias(self, site: Site, path: str, layer: nn.Module, input_scale: float | None) -> fx.Node:
        """DequantizeLinear of int32; the real bias where the accumulator's step is unknown or too small for int32."""
        if input_scale is None:
            return site.read(f"{path}.bias")
        scale = layer.get_buffer("weight_scale").detach().double() * input_scale
        steps = torch.round(layer.get_parameter("bias").detach().double() / scale)
        if not bool((steps.abs() <= _INT32.max).all()):
            return site.read(f"{path}.bias")
        # Named after the input's scale as well: a layer that is called twice has a bias for each.
        name = f"{path}.bias_{input_scale.hex()}".replace("0x1.", "").replace("+", "").replace("-", "m")
        integers = site.constant(f"{name}_steps", steps.to(torch.int32))
        step = site.constant(f"{name}_scale", scale.float())
        zeros = site.constant(f"{name}_zero_point", torch.zeros(len(steps), dtype=torch.int32))
        return site.call(_OPS.dequantize_axis.default, integers, step, zeros, 0)

    def number(self, site: Site, value: float) -> fx.Node:
        """DequantizeLinear of 255, on the grid on which that is the number: QLinearAdd wants integers on both sides."""
        scale = float(torch.tensor(value / 255))
        stored = site.constant(f"number_{self._constants}", torch.tensor([255], dtype=torch.uint8))
        return self.dequantize(site, stored, scale, 0, torch.uint8)

    def global_average_pool(self, site: Site, x: fx.Node) -> fx.Node:
        """GlobalAveragePool."""
        return site.call(_OPS.global_average_pool.default, x)

    def _grid(self, site: Site, scale: float, zero_point: int, dtype: torch.dtype) -> tuple[fx.Node, fx.Node]:
        name = f"grid_{self._constants}"
        self._constants += 1
        return (
            site.constant(f"{name}_scale", torch.tensor(scale)),
            site.constant(f"{name}_zero_point", torch.tensor(zero_point, dtype=dtype)),
        )


def translations(op: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what the exporter writes for each operation; ``op`` is an opset of onnxscript."""
    return {
        _OPS.quantize.default: lambda x, scale, zero_point: op.QuantizeLinear(x, scale, zero_point),
        _OPS.dequantize.default: lambda q, scale, zero_point: op.DequantizeLinear(q, scale, zero_point),
        _OPS.dequantize_axis.default: lambda q, scale, zero_point, axis: op.DequantizeLinear(
            q, scale, zero_point, axis=axis
        ),
        _OPS.global_average_pool.default: lambda x: op.GlobalAveragePool(x),
        torch.ops.aten.gelu.default: lambda x, approximate="none": _gelu(op, x, approximate),
    }


def _gelu(op: Any, x: Any, approximate: str) -> Any:
    """Write GELU, Hendrycks and Gimpel, arXiv 1606.08415.

    Exactly x (1 + erf(x / sqrt(2))) / 2; approximately x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2. Halved
    last, so that ONNX Runtime recognises it (``core/optimizer/gelu_fusion``) and computes it in one pass, with the bias
    of the linear layer before it; torch's exporter halves the sum, and gets five passes.
    """

    def number(value: float) -> Any:
        return op.Constant(value_float=value)

    if approximate == "tanh":
        cube = op.Mul(op.Mul(x, x), x)
        inner = op.Mul(op.Add(x, op.Mul(cube, number(0.044715))), number(math.sqrt(2 / math.pi)))
        return op.Mul(op.Mul(x, op.Add(op.Tanh(inner), number(1.0))), number(0.5))
    erf = op.Erf(op.Div(x, number(math.sqrt(2.0))))
    return op.Mul(op.Mul(x, op.Add(erf, number(1.0))), number(0.5))
