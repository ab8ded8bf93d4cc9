"""Subclasses that only construct are the layer that they extend; others are not."""

from typing import Any

import torch
from torch import Tensor, nn

from secateur.compiler.capture import trace
from secateur.compiler.layers import layer_class
from secateur.compiler.quantized import QuantizedConv2d
from secateur.passes.fold_bn import FoldBN
from support.exact import missed, run_exact


class Simple(nn.Conv2d):
    def __init__(self, width: int) -> None:
        super().__init__(3, width, 3, padding=1, bias=False)

    @staticmethod
    def stride_of(width: int) -> int:
        return width


class Renamed(Simple):
    pass


class Standardised(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


class Doubling(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Block(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 1), nn.ReLU())


def test_which_layer_a_class_is() -> None:
    assert layer_class(Simple) is layer_class(Renamed) is nn.Conv2d
    assert layer_class(QuantizedConv2d) is QuantizedConv2d
    assert layer_class(nn.Conv2d) is nn.Conv2d
    for other in (Standardised, Doubling):
        assert layer_class(other) is other


def captured(layer: nn.Module) -> list[tuple[str, Any]]:
    program = trace(nn.Sequential(layer, nn.ReLU()).eval(), torch.zeros(1, 3, 8, 8))
    return [(node.op, str(node.target)) for node in program.graph.nodes]


def test_capture_keeps_them_whole_and_looks_into_the_others() -> None:
    assert ("call_module", "0") in captured(Renamed(4))
    assert ("call_module", "0") not in captured(Standardised(3, 4, 3))
    assert ("call_module", "0.0") in captured(Block())


def test_passes_treat_them_as_the_layer() -> None:
    result = run_exact(nn.Sequential(Simple(4), nn.BatchNorm2d(4)), (1, 3, 8, 8), FoldBN())
    assert missed(result) == {}
    assert type(result.program.owner("0")) is Simple
