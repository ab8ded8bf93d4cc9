"""Every dialect computes what the program does, on a copy that shares its tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from secateur.backends.engines.inductor import DecomposedDialect, PlainDialect, dialect
from secateur.backends.engines.lower import evaluation_copy, is_quantized, lower
from secateur.backends.engines.onnx_ops import OnnxDialect
from secateur.compiler import functional
from secateur.compiler.capture import trace
from secateur.compiler.errors import CompilerError
from secateur.compiler.program import Program
from secateur.compiler.quantized import QuantizedConv2d, QuantizedLinear
from support.quantized_by_hand import Mixed, quantized
from support.small import Residual, captured


def _targets(module: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("words", [PlainDialect, dialect, OnnxDialect])
def test_integers_mean_the_same(words: Any, dtype: torch.dtype) -> None:
    program = quantized(Mixed(4), 2, 3, 8, 8, dtype=dtype)
    x = torch.randn(3, 3, 8, 8)
    module = lower(program, words())
    difference = (module(x) - program.module(x)).abs()
    # A bias rounded to the accumulator's step may turn a half-way value: one step, in few places.
    step = next(n.args[1] for n in reversed(program.graph.nodes) if n.target is functional.dequantize)
    assert isinstance(step, float)
    assert float(difference.max()) <= (1.01 * step if words is OnnxDialect else 0.0)
    assert float((difference > 0.5 * step).float().mean()) < 0.2


def test_the_program_stays_as_it_is_and_tensors_are_shared() -> None:
    program = quantized(Mixed(4), 1, 3, 8, 8)
    program.root.train()
    before = str(program.graph)
    module = lower(program, OnnxDialect())
    assert str(program.graph) == before
    assert all(m.training for m in program.root.modules() if type(m) is not nn.Module or m is program.root)
    assert not any(m.training for m in module.modules())
    assert module.get_parameter("fc.weight") is program.owner("fc").weight
    assert "fc.weight_zero_point" in dict(module.named_buffers())
    assert "weight_zero_point" not in dict(program.owner("fc").named_buffers())


def test_onnx_words() -> None:
    module = lower(quantized(Mixed(4), 1, 3, 8, 8), OnnxDialect())
    found = _targets(module)
    assert found.count("secateur.global_average_pool.default") == 2
    # Seven weights and six biases.
    assert found.count("secateur.dequantize_axis.default") == 13
    steps = {name: t.dtype for name, t in module.named_buffers() if name.endswith("_steps")}
    assert len(steps) == 6
    assert set(steps.values()) == {torch.int32}


def test_torch_words_leave_pools_alone() -> None:
    words = dialect()
    assert isinstance(words, DecomposedDialect)
    found = _targets(lower(quantized(Mixed(4), 1, 3, 8, 8), words))
    assert found.count("quantized_decomposed.dequantize_per_channel.default") == 7
    assert not [name for name in found if name.startswith("secateur")]


def test_torch_without_the_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.backends.engines.inductor._DECOMPOSED", "torch.gone")
    assert type(dialect()) is PlainDialect


def test_global_means_only() -> None:
    class Means(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            other = x.mean(1), x.mean((1, 2)), x.mean(), x.flatten(2).mean(2), x.mean((2, 3), dtype=torch.float64)
            return x.mean((2, 3)), x.mean((-1, -2), keepdim=True), *other

    program = captured(Means(), 2, 3, 4, 4)
    module = lower(program, OnnxDialect())
    assert _targets(module).count("secateur.global_average_pool.default") == 2
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(module(x), program.module(x))


def test_a_layer_called_twice_has_a_bias_for_each_scale() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.relu(self.conv(x)))

    program = quantized(Twice(), 1, 3, 4, 4)
    module = lower(program, OnnxDialect())
    scales = [t for name, t in module.named_buffers() if "bias" in name and name.endswith("_scale")]
    assert len(scales) == 2
    assert not torch.equal(*scales)
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(module(x), program.module(x), atol=0.02, rtol=0)


def test_a_bias_too_large_for_int32_stays_real() -> None:
    program = quantized(nn.Sequential(nn.Linear(4, 2)), 1, 4)
    layer: Any = next(m for m in program.root.modules() if isinstance(m, QuantizedLinear))
    with torch.no_grad():
        layer.bias.fill_(1e9)
    module = lower(program, OnnxDialect())
    assert not [name for name, _ in module.named_buffers() if name.endswith("_steps")]


def test_an_unknown_kind_of_integer_is_refused() -> None:
    program = quantized(nn.Sequential(nn.ReLU()), 1, 4)
    for node in program.graph.nodes:
        if node.target is functional.quantize:
            node.args = (*node.args[:3], torch.int16)
    with pytest.raises(CompilerError, match=r"type torch\.int16"):
        lower(program, OnnxDialect())


def test_a_padding_without_integer_kernel_is_refused() -> None:
    program = quantized(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1)), 1, 3, 4, 4)
    layer: Any = next(m for m in program.root.modules() if isinstance(m, QuantizedConv2d))
    layer.padding_mode = "reflect"
    with pytest.raises(CompilerError, match="padding mode 'reflect'"):
        lower(program, OnnxDialect())


def test_is_quantized() -> None:
    assert is_quantized(quantized(nn.Sequential(nn.Linear(4, 2)), 1, 4))
    assert not is_quantized(captured(Residual()))


def test_evaluation_copy_has_modes_of_its_own() -> None:
    class Drop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, self.training)

    program: Program = trace(Drop().train(), torch.zeros(1, 8))
    x = torch.ones(1, 8)
    assert torch.equal(evaluation_copy(program)(x), x)
    assert program.root.training
