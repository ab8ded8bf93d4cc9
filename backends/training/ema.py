"""Averaged weights: m = d m + (1 - d) w after every step, evaluated and kept in place of the weights themselves.

The decay rises with the number of steps, min(d, (1 + n) / (10 + n)), so that the first weights are soon forgotten.
Integers, and running statistics with them, are copied as they are at the time. Polyak and Juditsky, 1992.

The mean of a channel that is zero only now and then is not zero: callbacks that keep channels at zero do so in the
average too, whenever it is put into the module. The mean itself goes on as it was.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .callback import Callback, Run


class Average(Callback):
    """Keeps the average; :meth:`swapped` puts it into the module for a while.

    Args:
        decay: d, below 1.
        others: Callbacks that may have channels at zero.
    """

    def __init__(self, decay: float, others: Sequence[Callback] = ()) -> None:
        self.decay, self.others = decay, others
        self.mean: dict[str, Tensor] = {}

    def begin(self, run: Run) -> None:
        """Start from the weights as they are."""
        if not self.mean:
            self.mean = {name: p.detach().clone() for name, p in run.module.named_parameters()}

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        """Take in the new weights."""
        decay = min(self.decay, (1 + run.step) / (10 + run.step))
        for name, parameter in run.module.named_parameters():
            self.mean[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def swapped(self, run: Run) -> Generator[None]:
        """Put the average in the weights' place, and the weights back at the end."""
        weights = {name: parameter.detach().clone() for name, parameter in run.module.named_parameters()}
        self.finish(run)
        try:
            yield
        finally:
            self._put(run, weights)

    def finish(self, run: Run) -> None:
        """End with the average."""
        self._put(run, self.mean)
        for callback in self.others:
            callback.averaged(run)

    @staticmethod
    @torch.no_grad()
    def _put(run: Run, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in run.module.named_parameters():
            parameter.copy_(weights[name])

    def state(self) -> Mapping[str, Tensor]:
        """Return the average."""
        return self.mean

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.mean = {name: tensor.clone() for name, tensor in state.items()}
