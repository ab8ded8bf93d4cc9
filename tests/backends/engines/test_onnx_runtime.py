"""Programs through ONNX Runtime give what torch gives; errors are one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secateur.backends.engines.onnx_runtime import OnnxRuntime, session_engine
from secateur.compiler.errors import CompilerError
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
