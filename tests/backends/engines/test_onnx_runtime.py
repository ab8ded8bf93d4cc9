"""Programs through ONNX Runtime give what torch gives; errors are one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secateur.backends.engines.onnx_runtime import OnnxRuntime, _op_times, session_engine
from secateur.backends.engines.op_times import OpTime
from secateur.compiler.errors import CompilerError
from secateur.compiler.program import Program
from support.quantized_by_hand import Mixed, quantized
from support.small import Grouped, captured

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def test_a_program_without_a_file() -> None:
    program = captured(Grouped())
    run = OnnxRuntime().build(program, threads=2)
    for batch in (1, 4):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(run(x), [program.module(x).detach()], atol=1e-5, rtol=1e-4)


def test_one_at_a_time_gives_the_same(tmp_path: Path) -> None:
    program = captured(Grouped())
    OnnxRuntime().emit(program, tmp_path / "model.onnx")
    x = torch.randn(2, 3, 8, 8)
    plain = session_engine(tmp_path / "model.onnx", threads=1, optimize=False)
    torch.testing.assert_close(plain(x), OnnxRuntime().load(tmp_path / "model.onnx", threads=1)(x))


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(CompilerError, match=r"ONNX Runtime cannot load the file: .*\n  at: model\.onnx"):
        session_engine(tmp_path / "model.onnx", threads=1)


@pytest.mark.parametrize(
    ("program", "precision"),
    [(captured(Mixed(16).eval(), 1, 3, 8, 8), "float32"), (quantized(Mixed(16), 1, 3, 8, 8), "int8")],
)
def test_operations_are_timed_one_by_one(program: Program, precision: str) -> None:
    found = OnnxRuntime().profile(program, threads=1, batch=2)
    layers = {op.node: op for op in found if op.kind in ("convolution", "linear")}
    assert set(layers) == {"stem", "depthwise", "point", "branch", "squeeze", "hidden", "fc"}
    assert {op.precision for op in layers.values()} == {precision}
    assert all(op.ms > 0 for op in layers.values())


def test_the_first_call_is_not_counted() -> None:
    arguments = {"op_name": "QLinearConv", "input_type_shape": [{"uint8": [1]}, {"float": []}]}
    events = [{"cat": "Node", "name": "conv2d_q_kernel_time", "dur": d, "args": arguments} for d in (900, 2, 4, 3)]
    others = [{"cat": "Node", "name": "conv2d_q_fence_before", "dur": 5, "args": arguments}, {"cat": "Session"}]
    assert _op_times([*events, *others], {"conv2d": "stem"}) == [OpTime("stem", "convolution", 0.003, "int8")]
