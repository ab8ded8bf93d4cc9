"""The emitted ``model.onnx``: torch's exporter, QDQ for integers, any batch size where the model allows that.

A file is run by ONNX Runtime and compared with torch before anybody else gets it; where it computes something else it
is refused.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, fx

from ...compiler.errors import CompilerError
from ...compiler.program import Program
from .agreement import measure, random_inputs
from .base import Emission, Unsupported, first_line, quiet, require
from .lower import Rewrite, evaluation_copy, is_quantized, lower

OPSET: Final = 18
_EXTRA: Final = "onnx"

REAL_ERROR: Final = 1e-3
"""Largest relative error of an exported real program. Engines reorder sums: 1e-6 to 1e-5 is what is seen."""
INTEGER_ERROR: Final = 0.1
"""Largest relative error of an exported integer program, run operator by operator. A value half-way between two
integers may be rounded to either, and what follows differs by a step; 0 to 0.02 is what is seen."""


@dataclass(frozen=True, eq=False)
class Exported:
    """A program as ONNX."""

    model: Any
    """``onnx_ir.Model`` wrapped by torch's ``ONNXProgram``, which saves it."""
    any_batch: bool
    notes: tuple[str, ...]

    @property
    def batch_sizes(self) -> tuple[int | None, ...]:
        """Sizes to check it with; ``None`` is that of the example inputs."""
        return (1, 3) if self.any_batch else (None,)

    def save(self, path: Path) -> None:
        """Write one file; above 2 GB, the most that the format takes, weights go beside it."""
        with quiet():
            self.model.save(str(path))


_exported: weakref.WeakKeyDictionary[Program, dict[Rewrite | None, Exported]] = weakref.WeakKeyDictionary()
"""Exporting takes longer than most other things, and several engines start from it."""


def unsupported(program: Program) -> list[Unsupported]:
    """Return what ONNX cannot express, as far as can be told without trying: numbers of other types than float32."""
    found = [
        Unsupported(name, f"ONNX files are made of float32 models, this tensor is {str(tensor.dtype)[6:]}")
        for name, tensor in program.tensors()
        if tensor.is_floating_point() and tensor.dtype is not torch.float32
    ]
    return found[:1]


def export(program: Program, rewrite: Rewrite | None = None) -> Exported:
    """Convert a program, at most once.

    Args:
        program: What to convert.
        rewrite: What the engine wants to have changed first, see :func:`.lower.lower`; for programs with integers only.

    Raises:
        CompilerError: The exporter cannot.
        MissingExtraError: A package is missing.
    """
    if rewrite is not None and not is_quantized(program):
        rewrite = None
    known = _exported.setdefault(program, {})
    if rewrite in known:
        return known[rewrite]
    require("onnx", _EXTRA)
    script = require("onnxscript", _EXTRA)
    from .onnx_ops import OnnxDialect, translations

    module = lower(program, OnnxDialect(), rewrite)
    table = translations(getattr(script, f"opset{OPSET}"))
    inputs = random_inputs(program)
    notes: tuple[str, ...] = ()
    with quiet():
        try:
            model, any_batch = _convert(_any_batch(module, inputs), inputs, table), True
        except Exception as error:  # whatever stands against a free batch size, a fixed one may still work
            reason = first_line(error)
            try:
                model, any_batch = _convert(torch.export.export(module, tuple(inputs)), inputs, table), False
            except Exception as final:
                raise CompilerError(
                    f"torch.onnx cannot export the model: {_reason(final)}", hint="leave onnx out of what is emitted"
                ) from final
            size = inputs[0].shape[0] if inputs and inputs[0].ndim else 0
            notes = (f"model.onnx takes batches of {size} only: {reason}",)
    made = known[rewrite] = Exported(model, any_batch, notes)
    return made


def _any_batch(module: fx.GraphModule, inputs: list[Tensor]) -> torch.export.ExportedProgram:
    if not inputs or not all(tensor.ndim for tensor in inputs):
        raise CompilerError("an input has no batch dimension")
    batch = torch.export.Dim("batch", min=1)
    # An example batch of one would be taken for a constant.
    several = tuple(torch.cat([t, t]) if t.shape[0] == 1 else t for t in inputs)
    return torch.export.export(module, several, dynamic_shapes=tuple({0: batch} for _ in several))


def _convert(exported: torch.export.ExportedProgram, inputs: list[Tensor], table: dict[Any, Any]) -> Any:
    program = torch.onnx.export(
        exported,
        tuple(inputs),
        dynamo=True,
        opset_version=OPSET,
        custom_translation_table=table,
        verbose=False,
        external_data=False,
    )
    if program is None:
        raise CompilerError("the exporter returned nothing")
    for node in program.model.graph:  # names of this machine's files, and many times the size of small models
        node.metadata_props.clear()
    for value in program.model.graph.initializers.values():
        value.metadata_props.clear()
    _separate_zero_points(program.model.graph)
    return program


def _separate_zero_points(graph: Any) -> None:
    """Give every weight a zero point of its own, where the exporter made one of all that are equal.

    OpenVINO 2026.4 computes all layers before and around in float where a convolution and a linear layer share one.
    """
    ir = require("onnx_ir", _EXTRA)
    seen: set[str] = set()
    for node in graph:
        zeros = node.inputs[2] if node.op_type == "DequantizeLinear" and len(node.inputs) > 2 else None
        if (
            zeros is None
            or zeros.const_value is None
            or not zeros.shape
            or not zeros.name.endswith("weight_zero_point")
        ):
            continue
        if zeros.name in seen:
            name = f"{node.inputs[0].name}_own_zero_point"  # without "own" it may be that of the shared one
            own = graph.initializers.get(name)  # there already, if the same weight is read twice
            if own is None:
                tensor = ir.tensor(zeros.const_value.numpy(), name=name)
                own = ir.Value(name=name, shape=zeros.shape, type=zeros.type, const_value=tensor)
                graph.register_initializer(own)
            node.replace_input_with(2, own)
        seen.add(node.inputs[2].name)


def _reason(error: BaseException) -> str:
    """The exporter's own message is a report of many pages; its cause says what happened."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def emit(program: Program, path: Path) -> Emission:
    """Write the file and run it.

    The file as such is checked: real operators where it has integers between them, as torch computes. What ONNX
    Runtime's integer kernels make of it, with other roundings, is measured and returned.

    Raises:
        CompilerError: The exporter cannot, or the file computes something else than torch.
        MissingExtraError: A package is missing.
    """
    require("onnxruntime", _EXTRA)
    exported = export(program)
    exported.save(path)
    from .onnx_runtime import session_engine

    reference = evaluation_copy(program)
    quantized = is_quantized(program)
    literal = session_engine(path, threads=1, optimize=not quantized)
    found = measure(program, literal, reference, exported.batch_sizes)
    allowed = INTEGER_ERROR if quantized else REAL_ERROR
    if not found.relative_error <= allowed:
        path.unlink()
        raise CompilerError(
            f"the exported ONNX file does not compute what the model does: relative error {found.relative_error:.1e}, "
            f"allowed {allowed:.0e}",
            where=path.name,
            hint="leave onnx out of what is emitted",
        )
    if quantized:
        found = measure(program, session_engine(path, threads=1), reference, exported.batch_sizes)
    return Emission(exported.notes, found)
