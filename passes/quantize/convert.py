"""``convert``: after quantization-aware training, fake quantization becomes integers.

    fake_quantize(t, s, z)         ->  dequantize(quantize(t, s, z), s, z)
    FakeQuantizedConv2d(W)         ->  QuantizedConv2d(q)      scale[o] = max |W[o]| / limit, q = round(W / scale)

What the layers computed in training is what the integers stand for, up to values half-way between two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import fx, nn

from ...compiler.functional import fake_quantize
from ...compiler.program import Program
from ...compiler.quantized import FAKE_QUANTIZED
from ..base import Contract, Pass, PassResult, Remark, RemarkKind
from ..edit import Edit, copy_layer
from .insert import insert
from .ranges import Affine
from .weights import quantize_weight, quantized_layer

_FLOAT: Final[dict[type[nn.Module], type[nn.Module]]] = {fake: kind for kind, fake in FAKE_QUANTIZED.items()}


@dataclass(frozen=True)
class Convert(Pass):
    """Turn fake quantization into integers, after training."""

    name: ClassVar[str] = "convert"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    def run(self, program: Program) -> PassResult:
        """Convert; see :class:`~..base.Pass`."""
        edit = Edit(program)
        ranges: dict[fx.Node, Affine] = {}
        for node in list(edit.graph.nodes):
            if node.target is fake_quantize:
                source, scale, zero_point, dtype = _arguments(node)
                edit.replace(node, source)
                ranges[source] = Affine(float(scale), int(zero_point), dtype)
        layers = 0
        for path in dict.fromkeys(str(n.target) for n in edit.graph.nodes if n.op == "call_module"):
            layer: Any = edit.program.owner(path)
            if type(layer) in _FLOAT:
                plain = copy_layer(layer)
                plain.__class__ = _FLOAT[type(layer)]
                plain.__dict__.pop("limit")
                edit.set_layer(path, quantized_layer(plain, *quantize_weight(layer.weight, layer.limit), None))
                layers += 1
        if not layers and not ranges:
            remark = Remark(RemarkKind.MISSED, self.name, "", "there is no fake quantization: quantize{train} makes it")
            return PassResult(program, changed=False, remarks=(remark,))
        insert(edit, ranges)
        finished = edit.finish("weights and activations are quantized: the result is for inference")
        return PassResult(finished, changed=True, stats={"layers": layers, "tensors": len(ranges)})


def _arguments(node: fx.Node) -> tuple[fx.Node, float, int, torch.dtype]:
    names = ("input", "scale", "zero_point", "dtype")
    found: Any = [node.args[i] if i < len(node.args) else node.kwargs[name] for i, name in enumerate(names)]
    return found[0], found[1], found[2], found[3]
