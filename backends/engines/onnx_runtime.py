"""ONNX Runtime on the CPU: all graph optimisations, sequential, so many threads inside an operator."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ...compiler.errors import CompilerError
from ...compiler.program import Program
from . import onnx_export
from .base import Emission, Engine, Unsupported, first_line, require

_EXTRA: Final = "onnx"
_ERRORS_ONLY: Final = 3


class OnnxRuntime:
    """The engine ``onnx``."""

    name = "onnx"
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


def session_engine(path: Path, *, threads: int, optimize: bool = True, optimized: Path | None = None) -> Engine:
    """Load a file.

    Args:
        path: The ONNX file.
        threads: Inside an operator.
        optimize: Whether the graph is optimised; otherwise its operators run one by one.
        optimized: Where to write the graph as ONNX Runtime runs it.

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
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CompilerError(f"ONNX Runtime cannot load the file: {first_line(error)}", where=path.name) from error
    return _SessionEngine(session)


class _SessionEngine:
    def __init__(self, session: Any) -> None:
        self.session = session
        self.names = [value.name for value in session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        feed = {name: tensor.detach().numpy() for name, tensor in zip(self.names, inputs, strict=True)}
        try:
            return [torch.from_numpy(array) for array in self.session.run(None, feed)]
        except Exception as error:
            raise CompilerError(f"ONNX Runtime cannot run the model: {first_line(error)}") from error
