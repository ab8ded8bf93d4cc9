"""torch itself, operator by operator: what every other engine is compared with. Integers are simulated in float32."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...compiler.errors import CompilerError
from ...compiler.functional import dequantize, quantize
from ...compiler.ops import normalise
from ...compiler.program import Program
from .agreement import flatten, random_inputs
from .base import PROFILED_CALLS, Emission, Engine, Unsupported, first_line, quiet, torch_threads
from .lower import evaluation_copy
from .op_times import OpTime, kind_of


class TorchEager:
    """The engine ``torch``."""

    name = "torch"
    names_layers = True
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

    def profile(self, program: Program, *, threads: int, batch: int | None = None) -> list[OpTime]:
        """Time the operations of the graph one by one; see :class:`.base.Profiler`."""
        module = evaluation_copy(program)
        inputs = random_inputs(program, batch)
        timed = _Timed(module)
        with torch_threads(threads), torch.inference_mode():
            for _ in range(PROFILED_CALLS + 1):
                timed.run(*inputs)
        found: list[OpTime] = []
        for node, times in timed.seconds.items():
            call = normalise(program, node)
            kind = "quantize" if node.target in (quantize, dequantize) else call.key
            found.append(OpTime(call.owner or node.name, kind_of(kind), 1e3 * median(times[1:]), "float32"))
        return found

    def load(self, path: Path, *, threads: int) -> Engine:
        """Load a ``torch.export`` program."""
        try:
            with quiet():
                return ModuleEngine(torch.export.load(path).module(), threads)
        except Exception as error:
            raise CompilerError(f"torch.export cannot load the file: {first_line(error)}", where=path.name) from error


class _Timed(fx.Interpreter):
    """Runs a graph node by node, with an eye on the clock."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seconds: dict[fx.Node, list[float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        start = perf_counter()
        value = super().run_node(n)
        if n.op.startswith("call_"):
            self.seconds.setdefault(n, []).append(perf_counter() - start)
        return value


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
