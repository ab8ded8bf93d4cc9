"""What a method hooks into the training loop by.

The loop itself knows nothing of pruning: soft filter pruning, sparsity on batch-norm scales, frozen masks and averaged
weights are callbacks, called in the order in which they are given. A callback changes parameters, gradients and the
optimizer's state in place, and never replaces the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ...compiler.program import Program


@dataclass
class Run:
    """What callbacks see of a run."""

    module: nn.Module
    """The module itself, on its device, without the wrappers of any library."""
    program: Program | None
    """Its graph as captured before training, whose names are the module's; ``None`` where it could not be captured."""
    optimizer: torch.optim.Optimizer
    epochs: int
    """How many the run has in all."""
    steps_per_epoch: int
    epoch: int = 0
    """Epochs that are finished."""
    step: int = 0
    """Optimizer steps that are finished, over all epochs."""
    figures: dict[str, float] = field(default_factory=dict[str, float])
    """Of the epoch that is being finished: ``loss``, ``top1``, ... ; callbacks add theirs, and the log keeps them."""

    @property
    def progress(self) -> float:
        """Return the share of all optimizer steps that are finished, from 0 to 1."""
        return self.step / max(1, self.epochs * self.steps_per_epoch)


class Callback:
    """Every hook does nothing by default. Hooks run on every process of a distributed run, in the same order."""

    def begin(self, run: Run) -> None:
        """Prepare, before the first epoch; in a run that is resumed, after :meth:`load_state`."""

    def before_epoch(self, run: Run) -> None:
        """Run before the first batch of an epoch; ``run.epoch`` is how many came before it."""

    def before_step(self, run: Run) -> None:
        """Run behind the backward pass and the clipping, before the optimizer's step: gradients are complete."""

    def after_step(self, run: Run) -> None:
        """Run behind the optimizer's step; ``run.step`` counts it already."""

    def after_epoch(self, run: Run) -> None:
        """Run behind the last batch of an epoch, before the evaluation; figures go to ``run.figures``."""

    def averaged(self, run: Run) -> None:
        """Zero in ``run.module`` what the method has at zero: averaged weights stand there, to be looked at or kept."""

    def finish(self, run: Run) -> None:
        """Run once, behind the last epoch's evaluation, on the weights that the run ends with."""

    def state(self) -> Mapping[str, Tensor]:
        """Return what a resumed run needs, as tensors, so that it continues to the same result."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state` returned, on the network's device."""
        del state
