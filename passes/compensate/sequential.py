"""Running a pruned program while its layers are changed one after the other, each right before it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, fx

from ...compiler.program import Program
from ..base import Pruned
from ..calibration import first_tensor
from ..edit import Edit
from .base import answers, distance
from .stepwise import Batch, Stepwise


class Sequential:
    """Both programs, in step.

    Args:
        edit: Of the pruned program; changed by ``change``.
        pruned: The dense program and the plan.
        batches: Calibration data.
        reads: Nodes of the pruned program that ``change`` takes, once for each time that they stand here.
        ends: Nodes of the dense program that it takes.
        change: Told of every node of the pruned program right before it runs.
    """

    def __init__(
        self,
        edit: Edit,
        pruned: Pruned,
        batches: Sequence[Batch],
        reads: Iterable[fx.Node],
        ends: Iterable[fx.Node],
        change: Callable[[fx.Node], None],
    ) -> None:
        self._batches = batches
        self._output, self._dense_output = output_of(edit.program), output_of(pruned.dense)
        self.now = Stepwise(edit.program, batches, [*reads, self._output], change)
        self.dense = Stepwise(pruned.dense, batches, [*ends, self._dense_output])

    def run(self, before: Program) -> dict[str, float]:
        """Run to the end; return how far ``before`` and the changed program are off the dense one."""
        old = answers(before, self._batches)
        new = [first_tensor(value) for value in self.now.take(self._output)]
        wanted = [first_tensor(value) for value in self.dense.take(self._dense_output)]
        return {**distance(old, wanted, "before"), **distance(new, wanted, "after")}


def channel_statistics(values: Sequence[Tensor], axis: int) -> tuple[Tensor, Tensor, int]:
    """Return mean and variance (of the whole, not estimated) per channel over all batches, float64, and the count."""
    flat = [value.double().movedim(axis, 0).flatten(1) for value in values]
    count = sum(part.shape[1] for part in flat)
    mean = sum((part.sum(1) for part in flat), start=flat[0].new_zeros(len(flat[0]))) / count
    squares = ((part - mean[:, None]).square().sum(1) for part in flat)
    return mean, sum(squares, start=flat[0].new_zeros(len(flat[0]))) / count, count


def output_of(program: Program) -> fx.Node:
    """Return the node of a program's output."""
    return next(node for node in program.graph.nodes if node.op == "output")
