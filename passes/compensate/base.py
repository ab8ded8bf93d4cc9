"""What the passes that repair pruning share: their fields, calibration data, and how far a program is off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...compiler.errors import OptionError, SourceError
from ...compiler.program import InputSpec, Program
from ..base import Contract, Pass, Pruned
from .stepwise import Batch, Stepwise


@dataclass(frozen=True)
class Compensation(Pass):
    """A pass that stands right after the passes that removed channels."""

    contract: ClassVar[Contract] = Contract.APPROXIMATE

    seed: int = 0
    """Of the positions that are drawn from large feature maps."""
    data: Iterable[Any] | None = field(default=None, compare=False, metadata={"text": False})
    """Calibration batches: tensors, or tuples that begin with the inputs."""
    pruned: Pruned | None = field(default=None, compare=False, repr=False, metadata={"text": False})
    """The dense program and the plan, from the pipeline."""
    progress: Callable[[str], None] = field(
        default=lambda text: None, compare=False, repr=False, metadata={"text": False}
    )

    def compared(self) -> Pruned:
        """Return what to compare with.

        Raises:
            OptionError: The pass was run outside a pipeline, and not given it.
        """
        if self.pruned is None:
            raise OptionError(
                f"{self.name} compares with the program before pruning, and was not told which that is",
                hint="run it in a pipeline right after prune, or give pruned=Pruned(dense, plan)",
            )
        return self.pruned

    def batches(self, program: Program) -> list[Batch]:
        """Return the calibration data.

        Raises:
            OptionError: There are none.
            SourceError: They are not what the model takes.
        """
        if self.data is None:
            raise OptionError(
                f"{self.name} measures what layers give on calibration data, and none were given",
                hint="give calibration images: --data DIR (Python: compile(..., data=batches))",
            )
        return read(self.data, program.inputs)


def read(data: Iterable[Any], inputs: Sequence[InputSpec]) -> list[Batch]:
    """Read calibration data into memory: tensors, or tuples that begin with the model's inputs (labels may follow).

    Raises:
        SourceError: There are none, or they are not what the model takes.
    """
    found: list[Batch] = []
    for item in data:
        parts: Sequence[Any] = item if isinstance(item, tuple | list) else (item,)
        for given, spec in zip(parts, inputs, strict=False):
            if not isinstance(given, Tensor) or given.ndim != len(spec.shape) or not len(given):
                got = f"of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
                raise SourceError(
                    f"calibration data for {spec.name!r} are {got}, not batches of shape {('N', *spec.shape[1:])}",
                    hint="an iterable of tensors [N, C, H, W], or of (images, labels)",
                )
        if len(parts) < len(inputs):
            raise SourceError(f"calibration data give {len(parts)} inputs, the model takes {len(inputs)}")
        pairs = zip(parts, inputs, strict=False)
        found.append(tuple(part.detach().to("cpu", spec.dtype) for part, spec in pairs))
    if not found:
        raise SourceError("there are no calibration data", hint="give at least one batch")
    return found


def answers(program: Program, batches: Sequence[Batch]) -> list[Tensor]:
    """Return the first output of a program for every batch."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    return [first(Stepwise(program, [batch], [output]).take(output)[0]) for batch in batches]


def first(value: Any) -> Tensor:
    """Return the first tensor of an output."""
    while not isinstance(value, Tensor):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return value


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor], when: str) -> dict[str, float]:
    """Return how far outputs are off those of the dense program, as figures for a report.

    ``output_error_WHEN``, the Euclidean norm of the difference relative to that of what is wanted, and, of class
    scores [N, K], ``agreement_WHEN``, the fraction of inputs with the same top-1.
    """
    squares = [((a.double() - b.double()).square().sum(), b.double().square().sum()) for a, b in _pairs(found, wanted)]
    off, size = (float(torch.stack(each).sum()) for each in zip(*squares, strict=True))
    figures = {f"output_error_{when}": (off / max(size, 1e-30)) ** 0.5}
    if all(b.ndim == 2 and b.shape[1] > 1 for b in wanted):
        same = torch.cat([a.argmax(1) == b.argmax(1) for a, b in _pairs(found, wanted)])
        figures[f"agreement_{when}"] = float(same.double().mean())
    return figures


def _pairs(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(found, wanted, strict=True)
