"""Network slimming: batch-norm scales are drawn to zero while the network trains.

    L = sum l(f(x, W), y) + s sum_gamma g(gamma)            Liu et al., ICCV 2017, eq. 1

subgradient   g = |gamma|: the gradient gets s sign(gamma), with sign(0) = 0
smooth        g = gamma^2 / 2w for |gamma| < w, |gamma| - w / 2 beyond: the gradient gets s clamp(gamma / w, -1, 1)
proximal      after the step, gamma = sign(gamma) max(|gamma| - lr s, 0): exact zeros

The penalty is not part of the mean over the batch: s is what it is, whatever the batch size. An optimizer that scales
gradients (Adam) would scale the penalty too, so there the same amount, lr s g'(gamma), is taken off after the step.
Weight decay acts on scales besides, unless the recipe leaves norms out.

Which channels go is then the compiler's business: ``prune{criterion=bn-scale scope=global normalize=none ratio=0.7}``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ....compiler.errors import OptionError
from ....passes.patterns import matches
from ..callback import Callback, Run

SMALL: Final = 1e-2
"""Scales below count as small in the log."""


@dataclass(frozen=True)
class Slim:
    """Options of network slimming."""

    name: ClassVar[str] = "slim"
    kind: ClassVar[str] = "method"
    pipeline: ClassVar[str] = ""

    s: float = 1e-4
    """Weight of the penalty."""
    penalty: Literal["subgradient", "smooth", "proximal"] = "subgradient"
    width: float = 0.01
    """w of ``smooth``."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the weight of the penalty comes to be s: at once, or from 0 over the whole run."""
    decoupled: bool | None = None
    """Whether the penalty acts after the step; by default with all optimizers but SGD."""
    init: float | None = None
    """What all scales are set to before the first epoch."""
    exclude: tuple[str, ...] = ()
    """Norms that match are left alone."""

    def __post_init__(self) -> None:
        if not self.s > 0 or not self.width > 0:
            raise OptionError("s and width are more than 0", where="slim", hint="slim{s=1e-4}")
        if self.penalty == "proximal" and self.decoupled is False:
            raise OptionError("penalty=proximal acts after the step", where="slim", hint="leave decoupled out")

    def callback(self) -> Callback:
        """Return what hooks into the loop."""
        return Slimming(self)


class Slimming(Callback):
    """Adds the penalty, and logs what it does."""

    def __init__(self, options: Slim) -> None:
        self.options = options

    def begin(self, run: Run) -> None:
        """Find the scales.

        Raises:
            OptionError: There are none.
        """
        options = self.options
        self.scales = [
            layer.weight
            for name, layer in run.module.named_modules()
            if isinstance(layer, _BatchNorm) and layer.affine and not any(matches(p, name) for p in options.exclude)
        ]
        if not self.scales:
            raise OptionError("slim finds no batch norms with scales", hint="network slimming needs some")
        plain = isinstance(run.optimizer, torch.optim.SGD)
        self.decoupled = options.penalty == "proximal" or (
            not plain if options.decoupled is None else options.decoupled
        )
        if options.init is not None and not run.epoch:
            for scale in self.scales:
                nn.init.constant_(scale, options.init)

    def before_step(self, run: Run) -> None:
        """Add to the gradients."""
        if not self.decoupled:
            weight = self._weight(run)
            for scale in self.scales:
                if scale.grad is not None:
                    scale.grad.add_(self._slope(scale), alpha=weight)

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        """Take off the scales themselves."""
        if self.decoupled:
            amount = run.optimizer.param_groups[0]["lr"] * self._weight(run)
            for scale in self.scales:
                if self.options.penalty == "proximal":
                    scale.copy_(scale.sign() * (scale.abs() - amount).clamp_min(0.0))
                else:
                    scale.sub_(self._slope(scale), alpha=amount)

    def _slope(self, scale: Tensor) -> Tensor:
        scale = scale.detach()
        return (scale / self.options.width).clamp(-1, 1) if self.options.penalty == "smooth" else scale.sign()

    def _weight(self, run: Run) -> float:
        share = {"linear": run.progress, "cosine": (1 - math.cos(math.pi * run.progress)) / 2}
        return self.options.s * share.get(self.options.schedule, 1.0)

    def after_epoch(self, run: Run) -> None:
        """Log how many scales are small, and their mean."""
        sizes = torch.cat([scale.detach().abs() for scale in self.scales])
        run.figures["small_scales"] = float((sizes < SMALL).float().mean())
        run.figures["mean_scale"] = float(sizes.mean())
