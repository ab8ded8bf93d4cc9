"""OpenVINO on the CPU: reads the ONNX file, compiles it for each input shape, so many threads, for latency."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor

from ...compiler.errors import CompilerError
from ...compiler.program import Program
from . import onnx_export
from .agreement import Agreement, measure, random_inputs
from .base import PROFILED_CALLS, Emission, Engine, Unsupported, first_line, quiet, require
from .lower import evaluation_copy, is_quantized
from .op_times import OpTime, layer_names, op_time
from .openvino_rewrites import rewrite

_EXTRA: Final = "openvino"
_INTEGERS: Final = ("_i8", "_u8")
"""How the names of kernels end that read integers."""
_NO_WORK: Final = frozenset({"Input", "Output", "Parameter", "Result", "Constant"})


class OpenVino:
    """The engine ``openvino``."""

    name = "openvino"
    names_layers = True
    integers = True

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Return what ONNX, from which it reads, cannot express."""
        return onnx_export.unsupported(program)

    def emit(self, program: Program, path: Path) -> Emission:
        """Write OpenVINO's own format: ``path`` (``.xml``), and the weights, as they are, beside it (``.bin``)."""
        package = require("openvino", _EXTRA)
        exported = onnx_export.export(program, rewrite)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "model.onnx"
            exported.save(source)
            model = _read(package, source)
            with quiet():
                package.save_model(model, str(path), compress_to_fp16=False)
        notes = [note.replace("model.onnx", path.name) for note in exported.notes]
        found = _checked(program, self.load(path, threads=1), exported.batch_sizes)
        if found.relative_error > onnx_export.INTEGER_ERROR:
            notes.append(
                f"OpenVINO's outputs differ from torch's by {found.relative_error:.0%}: measure accuracy before use"
            )
        return Emission(tuple(notes), found)

    def build(self, program: Program, *, threads: int) -> Engine:
        """Export a program to ONNX and load that."""
        require("openvino", _EXTRA)
        exported = onnx_export.export(program, rewrite)
        folder = tempfile.mkdtemp()
        path = Path(folder) / "model.onnx"
        try:
            exported.save(path)
            engine = _Compiled(path, threads)
            if not is_quantized(program):
                _checked(program, engine, (None,))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # The file is mapped into memory for as long as the model lives.
        weakref.finalize(engine, shutil.rmtree, folder, ignore_errors=True)
        return engine

    def load(self, path: Path, *, threads: int) -> Engine:
        """Load an ONNX file or one of OpenVINO's own."""
        return _Compiled(path, threads)

    def profile(self, program: Program, *, threads: int, batch: int | None = None) -> list[OpTime]:
        """Time operations by OpenVINO's performance counters; see :class:`.base.Profiler`."""
        require("openvino", _EXTRA)
        exported = onnx_export.export(program, rewrite)
        inputs = random_inputs(program, batch)
        seen: dict[tuple[str, str, str], list[float]] = {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            exported.save(path)
            engine = _Compiled(path, threads, profiled=True)
            for _ in range(PROFILED_CALLS + 1):
                engine(*inputs)
                (request,) = engine.requests.values()
                for counter in request.profiling_info:
                    if str(counter.status).endswith(".EXECUTED"):
                        key = str(counter.node_name), str(counter.node_type), str(counter.exec_type)
                        seen.setdefault(key, []).append(1e3 * counter.real_time.total_seconds())
        layers = layer_names(exported.model.model.graph)
        return [
            op_time(name, kind, median(times[1:] or times), integers=kernel.lower().endswith(_INTEGERS), layers=layers)
            for (name, kind, kernel), times in seen.items()
            if kind not in _NO_WORK
        ]


def _checked(program: Program, engine: Engine, batch_sizes: Sequence[int | None]) -> Agreement:
    """Compare with torch: OpenVINO 2026.4 computes something else for some splits of unequal widths.

    Raises:
        CompilerError: A real program is off by more than rounding. With integers no bound tells roundings from errors.
    """
    found = measure(program, engine, evaluation_copy(program), batch_sizes)
    if not is_quantized(program) and not found.relative_error <= onnx_export.REAL_ERROR:
        raise CompilerError(
            f"OpenVINO does not compute what the model does: relative error {found.relative_error:.1e}, "
            f"allowed {onnx_export.REAL_ERROR:.0e}",
            hint="run it on onnx: the same file is right there",
        )
    return found


def _read(package: Any, path: Path) -> Any:
    try:
        with quiet():
            return package.Core().read_model(str(path))
    except Exception as error:
        raise CompilerError(f"OpenVINO cannot read the file: {first_line(error)}", where=path.name) from error


class _Compiled:
    def __init__(self, path: Path, threads: int, *, profiled: bool = False) -> None:
        self.package = require("openvino", _EXTRA)
        self.model = _read(self.package, path)
        self.threads, self.profiled = threads, profiled
        self.requests: dict[tuple[tuple[int, ...], ...], Any] = {}

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        try:
            request = self.requests.get(shapes)
            if request is None:
                request = self.requests[shapes] = self._compile(shapes)
            request.infer([tensor.detach().contiguous().numpy() for tensor in inputs], share_inputs=True)
        except CompilerError:
            raise
        except Exception as error:
            raise CompilerError(f"OpenVINO cannot run the model: {first_line(error)}") from error
        # Copied: the request's own memory is written again by the next call.
        return [torch.from_numpy(tensor.data.copy()) for tensor in request.output_tensors]

    def _compile(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        model = self.model.clone()
        if len(model.inputs) != len(shapes):
            raise CompilerError(f"the model takes {len(model.inputs)} inputs, not {len(shapes)}")
        model.reshape({port: self.package.PartialShape(list(s)) for port, s in zip(model.inputs, shapes, strict=True)})
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            # Otherwise it computes in bfloat16 where the processor can, and is compared with others' float32.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERF_COUNT": self.profiled,
        }
        return self.package.Core().compile_model(model, "CPU", settings).create_infer_request()
