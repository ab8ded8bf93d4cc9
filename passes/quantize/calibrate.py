"""Calibration: run the program on data and note, tensor by tensor, what values it takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ...compiler.interpreter import Interpreter
from ...compiler.program import InputSpec, Program
from ..calibration import first_tensor
from .ranges import BINS, Floats, Statistics

Batch = tuple[Tensor, ...]
Progress = Callable[[str], None]


def generated(inputs: Sequence[InputSpec], seed: int, count: int = 8) -> list[Batch]:
    """Return normal noise in the shape of the inputs: what calibrates when nothing else is given."""
    generator = torch.Generator().manual_seed(seed)

    def draw(spec: InputSpec) -> Tensor:
        if spec.dtype.is_floating_point:
            return torch.randn(spec.shape, generator=generator)
        return torch.zeros(spec.shape, dtype=spec.dtype)

    return [tuple(draw(spec) for spec in inputs) for _ in range(count)]


def run(
    program: Program, data: Sequence[Batch], visit: Callable[[fx.Node, Tensor], None], progress: Progress, what: str
) -> list[Tensor]:
    """Interpret the program on every batch, showing each tensor to ``visit``; returns the first output of each."""
    interpreter = Visiting(program, visit)
    outputs: list[Tensor] = []
    with evaluating(program):
        for number, batch in enumerate(data, start=1):
            progress(f"{what}: batch {number} of {len(data)}")
            outputs.append(first_tensor(interpreter.run(*batch)))
    return outputs


@contextmanager
def evaluating(program: Program) -> Generator[None]:
    """Put a program's layers in evaluation mode, without gradients; afterwards as they were."""
    flags = [(module, module.training) for module in program.root.modules()]
    program.root.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


class Visiting(Interpreter):
    """Interprets a program in evaluation, showing every tensor to ``visit``."""

    def __init__(self, program: Program, visit: Callable[[fx.Node, Tensor], None]) -> None:
        super().__init__(program)
        self.visit = visit

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "get_attr":
            self.visit(n, value)
        return value


@dataclass(frozen=True)
class Observed:
    """What calibration found."""

    statistics: dict[fx.Node, Statistics]
    means: dict[fx.Node, Tensor]
    """Channel means over all samples and positions, float64."""


@dataclass
class _Seen:
    lows: list[float] = field(default_factory=list[float])
    highs: list[float] = field(default_factory=list[float])
    counts: Floats = field(default_factory=lambda: np.zeros(0))


def observe(
    program: Program,
    data: Sequence[Batch],
    nodes: Collection[fx.Node],
    histograms: Collection[fx.Node],
    channels: Mapping[fx.Node, int],
    progress: Progress,
) -> Observed:
    """Run the program on calibration data.

    Args:
        program: What to run.
        data: Batches of inputs.
        nodes: Tensors whose extremes are wanted.
        histograms: Those of them whose histograms are wanted too, which takes a second run.
        channels: Tensors whose channel means are wanted -> their channel axis.
        progress: Told what is being run.
    """
    seen = {node: _Seen() for node in nodes}
    sums: dict[fx.Node, Tensor] = {}
    sizes = dict.fromkeys(channels, 0)

    def extremes(node: fx.Node, value: Tensor) -> None:
        if node in seen:
            low, high = torch.aminmax(value)
            seen[node].lows.append(float(low))
            seen[node].highs.append(float(high))
        if node in channels:
            flat = value.movedim(channels[node], 0).flatten(1)
            sums[node] = flat.sum(1, dtype=torch.float64) + sums.get(node, 0.0)
            sizes[node] += flat.shape[1]

    def histogram(node: fx.Node, value: Tensor) -> None:
        if node in wanted:
            found = seen[node]
            low, high = min(found.lows), max(found.highs)
            counts = torch.histc(value.float(), BINS, low, high) if high > low else torch.zeros(BINS)
            found.counts = counts.double().numpy() + (found.counts if len(found.counts) else 0.0)

    run(program, data, extremes, progress, "calibrating")
    wanted = set(histograms)
    if wanted:
        run(program, data, histogram, progress, "calibrating (histograms)")
    statistics = {node: Statistics(tuple(s.lows), tuple(s.highs), s.counts) for node, s in seen.items()}
    return Observed(statistics, {node: total / max(sizes[node], 1) for node, total in sums.items()})
