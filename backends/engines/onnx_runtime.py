"""ONNX Runtime on the CPU: all graph optimisations, sequential, so many threads inside an operator."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor

from ...compiler.errors import CompilerError
from ...compiler.program import Program
from . import onnx_export
from .agreement import random_inputs
from .base import PROFILED_CALLS, Emission, Engine, Unsupported, first_line, require
from .op_times import OpTime, layer_names, op_time

_EXTRA: Final = "onnx"
_ERRORS_ONLY: Final = 3
_KERNEL: Final = "_kernel_time"
_INTEGERS: Final = frozenset({"uint8", "int8"})


class OnnxRuntime:
    """The engine ``onnx``."""

    name = "onnx"
    names_layers = True
    integers = True

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Return what ONNX cannot express."""
        return onnx_export.unsupported(program)

    def emit(self, program: Program, path: Path) -> Emission:
        """Write ``model.onnx``, see :mod:`.onnx_export`."""
        return onnx_export.emit(program, path)

    def build(self, program: Program, *, threads: int) -> Engine:
        """Export a program and load it."""
        require("onnxruntime", _EXTRA)
        exported = onnx_export.export(program)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            exported.save(path)
            return self.load(path, threads=threads)

    def load(self, path: Path, *, threads: int) -> Engine:
        """Load a file."""
        return session_engine(path, threads=threads)

    def profile(self, program: Program, *, threads: int, batch: int | None = None) -> list[OpTime]:
        """Time operations by ONNX Runtime's own profiler; see :class:`.base.Profiler`."""
        require("onnxruntime", _EXTRA)
        exported = onnx_export.export(program)
        inputs = random_inputs(program, batch)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            exported.save(path)
            engine = session_engine(path, threads=threads, profile=Path(folder) / "profile")
            for _ in range(PROFILED_CALLS + 1):
                engine(*inputs)
            events: list[Any] = json.loads(Path(engine.session.end_profiling()).read_text(encoding="utf-8"))
        return _op_times(events, layer_names(exported.model.model.graph))


def _op_times(events: Iterable[Any], layers: Mapping[str, str]) -> list[OpTime]:
    """Return the times in ONNX Runtime's profile: one event for each operation and call, in microseconds."""
    seen: dict[tuple[str, str], list[float]] = {}
    integers: dict[tuple[str, str], bool] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL):
            continue
        arguments = event["args"]
        key = name.removesuffix(_KERNEL), str(arguments["op_name"])
        seen.setdefault(key, []).append(float(event["dur"]))
        first: dict[str, Any] = next(iter(arguments.get("input_type_shape", [])), {})
        integers[key] = not _INTEGERS.isdisjoint(first)
    return [
        op_time(name, kind, median(times[1:] or times) / 1e3, integers=integers[name, kind], layers=layers)
        for (name, kind), times in seen.items()
    ]


def session_engine(
    path: Path, *, threads: int, optimize: bool = True, optimized: Path | None = None, profile: Path | None = None
) -> SessionEngine:
    """Load a file.

    Args:
        path: The ONNX file.
        threads: Inside an operator.
        optimize: Whether the graph is optimised; otherwise its operators run one by one.
        optimized: Where to write the graph as ONNX Runtime runs it.
        profile: Where to write what ONNX Runtime's profiler sees, a name to which it adds.

    Raises:
        CompilerError: ONNX Runtime cannot load it.
        MissingExtraError: ONNX Runtime is not installed.
    """
    runtime = require("onnxruntime", _EXTRA)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    # Threads that wait by spinning would slow down whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CompilerError(f"ONNX Runtime cannot load the file: {first_line(error)}", where=path.name) from error
    return SessionEngine(session)


class SessionEngine:
    """A session of ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.names = [value.name for value in session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run it."""
        feed = {name: tensor.detach().numpy() for name, tensor in zip(self.names, inputs, strict=True)}
        try:
            return [torch.from_numpy(array) for array in self.session.run(None, feed)]
        except Exception as error:
            raise CompilerError(f"ONNX Runtime cannot run the model: {first_line(error)}") from error
