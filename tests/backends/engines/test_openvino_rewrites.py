"""Roundings in front of what is computed in float go, their saturation stays; what layers read stays in integers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.backends.engines.lower import evaluation_copy, lower
from secateur.backends.engines.onnx_ops import OnnxDialect
from secateur.backends.engines.openvino_rewrites import rewrite
from secateur.compiler.capture import trace
from secateur.compiler.functional import dequantize, quantize
from secateur.compiler.program import Program, referenced_tree
from secateur.passes.quantize.quantize import Quantize

IMAGE = (2, 3, 8, 8)


class Net(nn.Module):
    """Two convolutions with something between."""

    def __init__(self, between: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.conv, self.gate, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = eval(self.between, {"torch": torch, "F": F, "x": self.conv(x), "self": self})
        return self.last(y)


def _quantized(between: str) -> Program:
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(IMAGE, generator=generator) for _ in range(4)]
    program = trace(Net(between).eval(), torch.zeros(IMAGE))
    return Quantize(data=data, weight_bits="8").run(program).program


def _rewritten(program: Program) -> Program:
    copied = evaluation_copy(program)
    made = Program(copied.graph, referenced_tree(copied, copied.graph), program.inputs, program.name)
    rewrite(made)
    return made


def _count(program: Program, function: object) -> int:
    return sum(node.target is function for node in program.graph.nodes)


BETWEEN = {
    # expression: (integers before, and after, clamps, hard swishes)
    "F.silu(x)": (5, 3, 1, 0),
    "F.hardswish(x)": (5, 3, 1, 1),
    "x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))": (7, 4, 2, 0),
    "F.relu(x) + self.gate(F.relu(x))": (7, 7, 0, 0),
    "x": (3, 3, 0, 0),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_only_roundings_before_float_go(between: str) -> None:
    program = _quantized(between)
    before, after, clamps, swishes = BETWEEN[between]
    made = _rewritten(program)
    assert _count(program, quantize) == before
    assert _count(made, quantize) == after
    assert _count(made, torch.clamp) == clamps
    assert _count(made, F.hardswish) == swishes
    assert all(node.users for node in made.graph.nodes if node.target in (quantize, dequantize, torch.add))


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_the_numbers_stay_up_to_rounding_also_where_integers_saturate(between: str, size: float) -> None:
    program = _quantized(between)
    x = size * torch.randn(IMAGE, generator=torch.Generator().manual_seed(2))
    wanted, given = program.module.eval()(x), _rewritten(program).module.eval()(x)
    assert float((wanted - given).abs().max()) < 0.03 * float(wanted.abs().max())
    assert float((wanted - given).norm() / wanted.norm()) < 0.02


def test_integers_that_a_convolution_reads_too_stay() -> None:
    program = _quantized("F.silu(x) + self.gate(x)")
    made = _rewritten(program)
    kept = [node for node in made.graph.nodes if node.target is quantize and node.args[0].target == "conv"]
    assert len(kept) == 1


def test_the_program_stays_as_it_is() -> None:
    program = _quantized("F.hardswish(x)")
    before = str(program.graph)
    lowered = lower(program, OnnxDialect(), rewrite)
    assert str(program.graph) == before
    assert any(node.target is F.hardswish for node in lowered.graph.nodes)


def test_a_gate_on_another_grid_is_no_hard_swish() -> None:
    program = _quantized("F.hardswish(x)")
    (total,) = (node for node in program.graph.nodes if node.target is torch.add)
    total.args = (total.args[0], 0.25)
    assert _count(_rewritten(program), F.hardswish) == 0
