"""Channels that are zero stay zero: pruning by masks, without another network.

A channel whose batch norm has scale 0 and shift 0 when training begins keeps both at 0, whatever gradients, momentum
and weight decay would do. The mask implementation of network slimming, which survives layers that lose all channels;
nothing gets faster by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..callback import Callback, Run


@dataclass(frozen=True)
class Frozen:
    """The method has no options."""

    name: ClassVar[str] = "frozen"
    kind: ClassVar[str] = "method"
    pipeline: ClassVar[str] = ""

    def callback(self) -> Callback:
        """Return what hooks into the loop."""
        return Freezing()


class Freezing(Callback):
    """Zeroes gradients before, and values after every step."""

    def begin(self, run: Run) -> None:
        """Find what is zero."""
        self.frozen: list[tuple[nn.Parameter, Tensor]] = []
        for layer in run.module.modules():
            if isinstance(layer, _BatchNorm) and layer.affine:
                mask = (layer.weight == 0) & (layer.bias == 0)
                self.frozen += [(layer.weight, mask), (layer.bias, mask)] if bool(mask.any()) else []

    def before_step(self, run: Run) -> None:
        """Let nothing pull at it."""
        for parameter, mask in self.frozen:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(mask, 0.0)

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        """Put back what weight decay or old momentum moved."""
        for parameter, mask in self.frozen:
            parameter.masked_fill_(mask, 0.0)

    def after_epoch(self, run: Run) -> None:
        """Log how many channels that are."""
        run.figures["frozen"] = float(sum(int(mask.sum()) for _, mask in self.frozen[::2]))
