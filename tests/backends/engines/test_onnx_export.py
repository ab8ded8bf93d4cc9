"""What is written is run and compared; what cannot be written, or computes something else, is refused in one line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.backends.engines import onnx_export
from secateur.backends.engines.onnx_export import _separate_zero_points, emit, export, unsupported
from secateur.backends.engines.onnx_runtime import session_engine
from secateur.compiler.capture import trace
from secateur.compiler.cpu import read_cpu
from secateur.compiler.errors import CompilerError
from support.quantized_by_hand import Mixed, quantized
from support.small import Residual, captured

onnx = pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def test_any_batch_size(tmp_path: Path) -> None:
    program = captured(Residual())
    program.root.train()
    found = emit(program, tmp_path / "model.onnx")
    assert found.notes == ()
    assert found.agreement is not None
    assert found.agreement.relative_error < 1e-5
    assert program.root.training
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    run = session_engine(tmp_path / "model.onnx", threads=1)
    program.root.eval()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(run(x), [program.module.eval()(x).detach()], atol=1e-5, rtol=1e-4)
    (opset,) = (o.version for o in onnx.load(tmp_path / "model.onnx").opset_import if not o.domain)
    assert opset >= 18


def test_the_file_tells_nothing_of_this_machine(tmp_path: Path) -> None:
    emit(captured(Residual()), tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert b"stack_trace" not in content


def test_a_program_is_exported_once() -> None:
    program = captured(nn.Linear(3, 2), 1, 3)
    assert export(program) is export(program)
    assert export(captured(nn.Linear(3, 2), 1, 3)) is not export(program)


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1) * 2


def test_a_fixed_batch_size_is_noted(tmp_path: Path) -> None:
    found = emit(trace(Fixed(), torch.zeros(2, 3, 4)), tmp_path / "model.onnx")
    (note,) = found.notes
    assert note.startswith("model.onnx takes batches of 2 only: ")
    assert "\n" not in note
    with pytest.raises(CompilerError, match="ONNX Runtime cannot run the model"):
        session_engine(tmp_path / "model.onnx", threads=1)(torch.zeros(3, 3, 4))


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i1e(x)

    with pytest.raises(CompilerError, match=r"torch\.onnx cannot export the model: .*i1e") as error:
        emit(captured(Odd(), 1, 3), tmp_path / "model.onnx")
    assert "\n" not in error.value.what
    assert not (tmp_path / "model.onnx").exists()


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = onnx_export.lower

    def wrong(program: Any, dialect: Any, rewrite: Any) -> Any:
        module = real(program, dialect, rewrite)
        module.register_parameter("fc_bias", None)
        module.fc = nn.Linear(8, 5)
        return module

    monkeypatch.setattr(onnx_export, "lower", wrong)
    with pytest.raises(CompilerError, match="does not compute what the model does"):
        emit(captured(Residual()), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_only_float32() -> None:
    (found,) = unsupported(captured(Residual()).__class__(*_double()))
    assert found.node == "stem.weight"
    assert "float64" in found.reason
    assert unsupported(captured(Residual())) == []


def _double() -> tuple[Any, ...]:
    program = trace(Residual().double(), torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    return program.graph, program.root, program.inputs


def test_several_outputs_come_flat_and_in_order(tmp_path: Path) -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
            return {"sum": x + y, "parts": [x * 2, y * 3]}

    program = trace(Several(), [torch.zeros(1, 2), torch.zeros(1, 2)])
    emit(program, tmp_path / "model.onnx")
    x, y = torch.randn(4, 2), torch.randn(4, 2)
    torch.testing.assert_close(session_engine(tmp_path / "model.onnx", threads=1)(x, y), [x + y, x * 2, y * 3])


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Any]:
    program = quantized(Mixed(16), 2, 3, 16, 16, weight_bits=read_cpu().weight_bits)
    path = tmp_path_factory.mktemp("integers") / "model.onnx"
    return program, path, emit(program, path)


def test_integers_stay_integers_in_the_file(integers: tuple[Any, Path, Any]) -> None:
    program, path, _ = integers
    graph = onnx.load(path).graph
    stored = {i.name: i for i in graph.initializer}
    for name, tensor in program.tensors():
        if tensor.dtype is torch.int8:
            assert stored[name].data_type == onnx.TensorProto.INT8
            assert tuple(stored[name].dims) == tuple(tensor.shape)
            assert (torch.from_numpy(onnx.numpy_helper.to_array(stored[name]).copy()) == tensor).all()
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0].endswith(".weight")]
    assert len(weights) == 7
    assert all(a.i == 0 for n in weights for a in n.attribute if a.name == "axis")
    biases = [i for i in graph.initializer if i.name.endswith("_steps")]
    assert len(biases) == 6
    assert all(i.data_type == onnx.TensorProto.INT32 for i in biases)
    # No real number for each weight is left anywhere.
    real = sum(onnx.numpy_helper.to_array(i).size for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT)
    assert real < 400 < sum(t.numel() for _, t in program.tensors() if t.dtype is torch.int8)


def test_onnx_runtime_computes_with_integers(integers: tuple[Any, Path, Any], tmp_path: Path) -> None:
    _, path, _ = integers
    session_engine(path, threads=1, optimized=tmp_path / "optimized.onnx")
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert found["QLinearConv"] == 5
    assert found["QGemm"] == 2
    assert found["QLinearGlobalAveragePool"] == 2
    assert {"QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid", "QLinearAveragePool"} <= set(found)
    # What is left of real numbers is the way in and out.
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1
    assert not set(found) & {"Conv", "Gemm", "Relu", "Clip", "Add"}


def test_integers_are_those_of_torch(integers: tuple[Any, Path, Any]) -> None:
    _, _, emission = integers
    found = emission.agreement
    assert emission.notes == ()
    # A step is 1/255 of the output's range, at least 1/255 of its largest value.
    assert found.max_difference <= 2.1 * 2 * found.scale / 255
    assert found.share_differing <= 0.3
    assert found.relative_error < 0.02


def test_every_integer_weight_has_a_zero_point_of_its_own(integers: tuple[Any, Path, Any]) -> None:
    _, path, _ = integers
    zeros = [
        n.input[2]
        for n in onnx.load(path).graph.node
        if n.op_type == "DequantizeLinear" and n.input[0].endswith("weight")
    ]
    assert len(zeros) == len(set(zeros)) == 7


def test_a_zero_point_named_after_a_weight_that_shares_it_is_split_all_the_same() -> None:
    def stored(name: str) -> Any:
        tensor = onnx_ir.tensor(np.zeros(4, np.int8), name=name)
        return onnx_ir.Value(name=name, shape=tensor.shape, type=onnx_ir.TensorType(tensor.dtype), const_value=tensor)

    first, second, scale, zeros = map(stored, ("a.weight", "b.weight", "scale", "b.weight_zero_point"))
    nodes = [onnx_ir.node("DequantizeLinear", [weight, scale, zeros]) for weight in (first, second, second)]
    graph = onnx_ir.Graph([], [], nodes=nodes, initializers=[first, second, scale, zeros])
    _separate_zero_points(graph)
    assert nodes[0].inputs[2] is zeros
    assert nodes[1].inputs[2] is nodes[2].inputs[2] is graph.initializers["b.weight_own_zero_point"]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_one_operation(approximate: str, tmp_path: Path) -> None:
    program = captured(nn.Sequential(nn.Linear(8, 8), nn.GELU(approximate=approximate)).eval(), 2, 8)
    emit(program, tmp_path / "model.onnx")
    run = session_engine(tmp_path / "model.onnx", threads=1, optimized=tmp_path / "optimized.onnx")
    x = 3 * torch.randn(5, 8)
    torch.testing.assert_close(run(x), [program.module(x).detach()], atol=1e-5, rtol=1e-4)
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert not {"Erf", "Div", "Mul"} & set(found) or approximate == "tanh"
