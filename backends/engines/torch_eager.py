"""torch itself, operator by operator: what every other engine is compared with. Integers are simulated in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ...compiler.errors import CompilerError
from ...compiler.program import Program
from .agreement import flatten
from .base import Emission, Engine, Unsupported, first_line, quiet, torch_threads
from .lower import evaluation_copy


class TorchEager:
    """The engine ``torch``."""

    name = "torch"
    integers = False

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Return nothing: every program is a torch module."""
        del program
        return []

    def emit(self, program: Program, path: Path) -> Emission:
        """Write ``model.pt2``, see :mod:`..exported`."""
        from ..exported import emit_pt2

        inputs = [torch.zeros(spec.shape, dtype=spec.dtype) for spec in program.inputs]
        note = emit_pt2(evaluation_copy(program), inputs, path)
        return Emission((note,) if note is not None else ())

    def build(self, program: Program, *, threads: int) -> Engine:
        """Return the program in eval mode."""
        return ModuleEngine(evaluation_copy(program), threads)

    def load(self, path: Path, *, threads: int) -> Engine:
        """Load a ``torch.export`` program."""
        try:
            with quiet():
                return ModuleEngine(torch.export.load(path).module(), threads)
        except Exception as error:
            raise CompilerError(f"torch.export cannot load the file: {first_line(error)}", where=path.name) from error


class ModuleEngine:
    """A module, run without gradients by so many threads."""

    def __init__(self, module: nn.Module, threads: int) -> None:
        self.module, self.threads = module, threads

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run it."""
        with torch_threads(self.threads), torch.inference_mode():
            try:
                return flatten(self.module(*inputs))
            except Exception as error:
                raise CompilerError(f"torch cannot run the model: {first_line(error)}") from error
