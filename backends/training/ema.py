"""Averaged weights: m = d m + (1 - d) w after every step, evaluated and kept in place of the weights themselves.

The decay rises with the number of steps, min(d, (1 + n) / (10 + n)), so that the first weights are soon forgotten.
Integers, and running statistics with them, are copied as they are at the time. Polyak and Juditsky, 1992.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from .callback import Callback, Run


class Average(Callback):
    """Keeps the average; :meth:`swapped` puts it into the module for a while."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
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
        """Exchange weights and average, and exchange them back at the end."""
        self._swap(run)
        try:
            yield
        finally:
            self._swap(run)

    def finish(self, run: Run) -> None:
        """End with the average."""
        self._swap(run)

    @torch.no_grad()
    def _swap(self, run: Run) -> None:
        for name, parameter in run.module.named_parameters():
            kept = parameter.clone()
            parameter.copy_(self.mean[name])
            self.mean[name].copy_(kept)

    def state(self) -> Mapping[str, Tensor]:
        """Return the average."""
        return self.mean

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.mean = {name: tensor.clone() for name, tensor in state.items()}
