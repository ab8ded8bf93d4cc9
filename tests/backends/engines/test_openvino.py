"""Programs through OpenVINO give what torch gives, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.backends.engines import openvino
from secateur.backends.engines.openvino import OpenVino
from secateur.compiler.cpu import read_cpu
from secateur.compiler.errors import CompilerError
from support.quantized_by_hand import Mixed, quantized
from support.small import Residual, captured

pytest.importorskip("openvino")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def test_real_numbers() -> None:
    program = captured(Residual())
    run = OpenVino().build(program, threads=1)
    outputs: list[tuple[list[torch.Tensor], torch.Tensor]] = []
    for batch in (1, 3):
        x = torch.randn(batch, 3, 8, 8)
        outputs.append((run(x), program.module(x).detach()))
    for given, wanted in outputs:  # compared at the end: results must not share the engine's memory
        torch.testing.assert_close(given, [wanted], atol=1e-5, rtol=1e-4)


def test_integers_and_a_file_of_its_own(tmp_path: Path) -> None:
    program = quantized(Mixed(16), 2, 3, 16, 16, weight_bits=read_cpu().weight_bits)
    found = OpenVino().emit(program, tmp_path / "model.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert found.notes == ()
    assert found.agreement is not None
    assert found.agreement.relative_error < 0.02
    # Weights are stored as bytes, not as real numbers.
    integers = sum(t.numel() for _, t in program.tensors() if t.dtype is torch.int8)
    assert integers < (tmp_path / "model.bin").stat().st_size < 2 * integers


def test_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_bytes(b"nothing")
    with pytest.raises(CompilerError, match=r"OpenVINO cannot read the file: .*\n  at: model\.xml"):
        OpenVino().load(tmp_path / "model.xml", threads=1)
    with pytest.raises(CompilerError, match="OpenVINO cannot run the model"):
        OpenVino().build(captured(nn.Linear(3, 2), 1, 3), threads=1)(torch.zeros(1, 4))


def test_a_wrong_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = openvino._Compiled.__call__
    monkeypatch.setattr(openvino._Compiled, "__call__", lambda self, *x: [2 * y for y in call(self, *x)])
    program = captured(Residual())
    with pytest.raises(CompilerError, match="OpenVINO does not compute what the model does"):
        OpenVino().build(program, threads=1)
    with pytest.raises(CompilerError, match="OpenVINO does not compute what the model does"):
        OpenVino().emit(program, tmp_path / "model.xml")
    found = OpenVino().emit(quantized(Mixed(16), 2, 3, 16, 16), tmp_path / "model.xml")
    assert found.notes == ("OpenVINO's outputs differ from torch's by 100%: measure accuracy before use",)


def test_operations_are_timed_one_by_one() -> None:
    for program, precision in (
        (captured(Mixed(16).eval(), 1, 3, 8, 8), "float32"),
        (quantized(Mixed(16), 1, 3, 8, 8), "int8"),
    ):
        found = OpenVino().profile(program, threads=1, batch=2)
        layers = {op.node: op for op in found if op.kind in ("convolution", "linear")}
        assert {"stem", "depthwise", "point", "branch"} <= set(layers)
        assert {layers[name].precision for name in ("stem", "point", "branch")} == {precision}
        assert sum(op.ms for op in found) > 0


class Tokens(nn.Module):
    """A convolution and a linear layer on rank 3, as wide as one another: their zero points are equal constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.body, self.fc = (
            nn.Conv2d(3, 64, 4, stride=4),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.Linear(64, 64),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(self.conv(x)).flatten(2).transpose(1, 2))


def test_layers_of_equal_width_all_run_in_integers() -> None:
    found = OpenVino().profile(quantized(Tokens(), 1, 3, 64, 64), threads=1)
    assert {op.node: op.precision for op in found if op.kind in ("convolution", "linear")} == {
        "conv": "int8",
        "body": "int8",
        "fc": "int8",
    }
