"""Compiled programs give what torch gives; integers reach oneDNN's int8 kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import cpp_builder

from secateur.backends.engines.agreement import compare
from secateur.backends.engines.inductor import Inductor, check_compiler, kind_of_kernel, precision_of_kernel
from secateur.backends.engines.op_times import CONVOLUTION, ELEMENTWISE, LINEAR, POOL, ROUNDING
from secateur.compiler.errors import CompilerError
from support.quantized_by_hand import quantized
from support.small import captured


def _has_compiler() -> bool:
    try:
        check_compiler()
    except CompilerError:
        return False
    return True


compiled = pytest.mark.skipif(not _has_compiler(), reason="needs a C++ compiler")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def test_no_compiler_is_said_clearly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    program = captured(Small())
    with pytest.raises(CompilerError, match=r"needs a C\+\+ compiler and finds none\n.*CXX"):
        Inductor().build(program, threads=1)
    with pytest.raises(CompilerError, match=r"needs a C\+\+ compiler"):
        Inductor().emit(program, tmp_path / "model.pt2")


@compiled
@pytest.mark.skipif(not Inductor().integers, reason="from torch 2.14 on, integer patterns are torchao's")
def test_integers_reach_integer_kernels() -> None:
    program = quantized(Small(), 2, 3, 8, 8)
    counters.clear()
    run = Inductor().build(program, threads=1)
    x = torch.randn(2, 3, 8, 8)
    found = compare(run(x), [program.module(x)])
    assert counters["inductor"]["qconv_unary_lower_count"] == 1
    assert counters["inductor"]["qlinear_unary_lower_count"] == 1
    assert found.relative_error < 0.02


@compiled
@pytest.mark.slow
def test_shapes_are_compiled_one_by_one() -> None:
    program = captured(Small())
    run = Inductor().build(program, threads=1)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(run(x), [program.module(x).detach()], atol=1e-5, rtol=1e-4)


@compiled
@pytest.mark.slow
def test_a_package(tmp_path: Path) -> None:
    program = captured(Small(), 2, 3, 8, 8)
    found = Inductor().emit(program, tmp_path / "model.pt2")
    assert found.agreement is not None
    assert found.agreement.relative_error < 1e-5
    assert found.notes == ("model.pt2 takes batches of 2 only, and runs on processors like this one",)
    x = torch.randn(2, 3, 8, 8)
    run = Inductor().load(tmp_path / "model.pt2", threads=1)
    torch.testing.assert_close(run(x), [program.module(x).detach()], atol=1e-5, rtol=1e-4)


def test_a_damaged_package(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"nothing")
    with pytest.raises(CompilerError, match=r"AOTInductor cannot load the file: .*\n  at: model\.pt2"):
        Inductor().load(tmp_path / "model.pt2", threads=1)


@compiled
@pytest.mark.slow
def test_kernels_are_timed() -> None:
    ops = Inductor().profile(captured(Small(), 1, 3, 8, 8), threads=1)
    assert [op.kind for op in ops].count(CONVOLUTION) == 1
    assert any("cpp_fused" in op.node for op in ops)
    assert all(op.ms > 0 and op.precision == "float32" for op in ops)


@pytest.mark.parametrize(
    ("name", "kind", "precision"),
    [
        ("onednn::qconv2d_pointwise", CONVOLUTION, "int8"),
        ("mkldnn::_convolution_pointwise", CONVOLUTION, "float32"),
        ("mkl::_mkl_linear", LINEAR, "float32"),
        ("graph_0_cpp_fused_mean_relu_3", POOL, "float32"),
        ("graph_0_cpp_fused_quantize_per_tensor_0", ROUNDING, "int8"),
        ("graph_0_cpp_fused_add_dequantize_per_tensor_quantize_per_tensor_relu_7", ELEMENTWISE, "int8"),
    ],
)
def test_kernels_have_kinds(name: str, kind: str, precision: str) -> None:
    assert (kind_of_kernel(name), precision_of_kernel(name)) == (kind, precision)
