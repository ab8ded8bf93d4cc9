"""What the passes that repair pruning share: their fields, calibration data, and how far a program is off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...compiler.errors import OptionError
from ...compiler.program import Program
from ..base import Contract, Pass, Pruned
from ..calibration import first_tensor, read
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
                hint="give calibration images: --data DIR (Python: compile(..., data=batches)); absorb needs none",
            )
        return [
            tuple(x.to(spec.dtype) for x, spec in zip(batch.inputs, program.inputs, strict=True))
            for batch in read(self.data, program)
        ]


def answers(program: Program, batches: Sequence[Batch]) -> list[Tensor]:
    """Return the first output of a program for every batch."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    return [first_tensor(Stepwise(program, [batch], [output]).take(output)[0]) for batch in batches]


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
