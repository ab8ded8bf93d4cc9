"""Soft filter pruning: the smallest filters are zeroed after every epoch, and may come back in the next.

He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018, algorithm 1. Where we do
otherwise, and why:

* A zeroed filter's norm has its scale and shift zeroed too, as long as the network is looked at: else the norm would go
  on giving a constant, and the compact network would be another one.
* What happens to a zeroed filter next is said by ``revival``:

  ``decay``    it comes back ``keep`` times as large, with scale and shift, so that it trains on; if it stays among the
               smallest it fades away by that factor every time.
  ``plain``    the paper: weights stay zero, the norm keeps its scale and shift. In front of a ReLU such a filter gets
               no gradient at all if the shift is not positive, and else one that is hundreds of times too large, since
               the norm divides by the root of a variance of zero.
  ``bounded``  the same, with gradients of zeroed filters no larger than those of the other filters of the layer.
  ``none``     nothing comes back.

* In the last epochs the choice stays, and nothing comes back (``settle``): what is left learns to do without. Else the
  network is trained to its end with filters that are then gone, which after few epochs is a loss.
* Nothing is zeroed before the first epoch: of a fresh network that would be chance, and for good.
* Channels that are normalised over together (a trunk with layer norms) are left alone: zeros would count, and stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ....compiler.dependency import ChannelGroup, Role
from ....compiler.errors import OptionError
from ....passes.patterns import matches
from ....passes.prune.layers import format_layers, parse_layers
from ..callback import Callback, Run
from .filters import Bools, Filters, Norm

Revival = Literal["decay", "plain", "bounded", "none"]


@dataclass(frozen=True)
class Soft:
    """Options of soft filter pruning."""

    name: ClassVar[str] = "soft"
    kind: ClassVar[str] = "method"
    pipeline: ClassVar[str] = "eliminate-dead-channels"

    rate: float = 0.3
    """Fraction of the filters of every group that is zeroed, rounded down."""
    layers: Mapping[str, float] = field(
        default_factory=dict[str, float],
        metadata={"parse": parse_layers, "format": format_layers, "expected": "conv1:0.5,layer1.*:0.25"},
    )
    """Other fractions for single layers; with ``rate=0``, for these only."""
    norm: Norm = "l2"
    interval: int = 1
    """Epochs between two times of zeroing."""
    begin: int = 1
    """The epoch after which filters are zeroed first."""
    shortcut: Literal["include", "avoid"] = "include"
    """Whether channels that are summed up with others (residual trunks) are zeroed too."""
    revival: Revival = "decay"
    keep: float = 0.5
    """How much of a zeroed filter comes back, with ``revival=decay``."""
    settle: float = 0.2
    """Share of all epochs, the last ones, in which the choice stays and nothing comes back; rounded up."""
    momentum: Literal["keep", "reset"] = "keep"
    """What the optimizer remembers of zeroed filters."""

    def __post_init__(self) -> None:
        for name, good, hint in (
            ("rate", 0 <= self.rate < 1, "0 <= rate < 1"),
            ("interval", self.interval >= 1, "1 or more epochs"),
            ("begin", self.begin >= 1, "1 or more: nothing is zeroed before the first epoch"),
            ("keep", 0 <= self.keep <= 1, "0 <= keep <= 1"),
            ("settle", 0 <= self.settle < 1, "0 <= settle < 1"),
        ):
            if not good:
                raise OptionError(f"{name}={getattr(self, name):g} is out of range", where="soft", hint=hint)
        if not self.rate and not self.layers:
            raise OptionError("soft zeroes nothing", hint="soft{rate=0.3} or soft{rate=0 layers=conv1:0.5}")

    def callback(self) -> Callback:
        """Return what hooks into the loop."""
        return SoftPruning(self)


class SoftPruning(Callback):
    """Zeroes, and lets come back."""

    def __init__(self, options: Soft) -> None:
        self.options = options
        self.gone: Bools | None = None
        self.saved: dict[str, Tensor] = {}
        """Parameters as they were before filters were zeroed, until these come back."""
        self.held: list[tuple[nn.Parameter, Tensor]] = []
        """Parameters and masks of what is kept at zero in this epoch."""

    def begin(self, run: Run) -> None:
        """Find the filters.

        Raises:
            OptionError: The network cannot be captured, or a pattern matches no layer.
        """
        if run.program is None:
            raise OptionError("soft needs a network that can be captured as a graph")
        self.filters = Filters(run.program, run.module)
        self.filters.check(self.options.layers)
        found = {block: self._rate(group) for block, group in self.filters.blocks()}
        self.rates = {block: rate for block, rate in found.items() if rate}
        if not self.rates:
            raise OptionError("soft finds no filters to zero", hint=self._hint())

    def _hint(self) -> str:
        for _, group in self.filters.blocks():
            if why := self.filters.staying(group):
                return f"zeros would stay in {group.name}: {why}"
        return "shortcut=include, or other layers"

    def _rate(self, group: ChannelGroup) -> float:
        options = self.options
        if self.filters.staying(group):
            return 0.0
        for pattern, rate in options.layers.items():
            if any(matches(pattern, layer) for layer in group.layers):
                return rate if rate < 1 else rate / group.width
        return 0.0 if options.shortcut == "avoid" and group.name in self.filters.on_shortcuts else options.rate

    def after_epoch(self, run: Run) -> None:
        """Zero the smallest filters, where it is time."""
        number, options, last = run.epoch + 1, self.options, self._last_choice(run)
        if number < last and (number < options.begin or (number - options.begin) % options.interval):
            return
        before = self.gone
        gone = before if before is not None and number > last else self.filters.smallest(options.norm, self.rates)
        self.saved = {name: p.detach().clone() for name, p, _, _ in self.filters.parts(gone)}
        self.filters.zero(gone)
        self.gone = gone
        if options.momentum == "reset":
            self._forget(run)
        run.figures["zeroed"] = float(gone.sum())
        if before is not None:
            run.figures["revived"] = float((before & ~gone).sum())
            run.figures["overlap"] = float((before & gone).sum() / max(1, before.sum()))

    def averaged(self, run: Run) -> None:
        """Zero the same filters."""
        if self.gone is not None:
            self.filters.zero(self.gone)

    def _last_choice(self, run: Run) -> int:
        """Return the number of the epoch, from 1, after which filters are chosen for the last time."""
        return max(1, run.epochs - ceil(Fraction(str(self.options.settle)) * run.epochs))

    @torch.no_grad()
    def before_epoch(self, run: Run) -> None:
        """Let filters come back, or keep them at zero."""
        self.held = []
        if self.gone is None:
            return
        if self.options.revival == "none" or run.epoch >= self._last_choice(run):
            self.held = [(parameter, mask) for _, parameter, mask, _ in self.filters.parts(self.gone)]
        elif self.saved:
            keep = self.options.keep
            weights, norms = (keep, keep) if self.options.revival == "decay" else (0.0, 1.0)
            for name, parameter, mask, role in self.filters.parts(self.gone):
                factor = norms if role is Role.CARRIES else weights
                parameter.copy_(torch.where(mask, factor * self.saved[name], parameter))
        self.saved = {}

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        """Put back what gradients, weight decay or old momentum moved of filters that stay at zero."""
        for parameter, mask in self.held:
            parameter.masked_fill_(mask, 0.0)

    @torch.no_grad()
    def before_step(self, run: Run) -> None:
        """Bound the gradients of zeroed filters, if asked to."""
        if self.options.revival != "bounded" or self.gone is None:
            return
        for _, parameter, mask, role in self.filters.parts(self.gone):
            if role is Role.PRODUCES and parameter.grad is not None:
                bound_rows(parameter.grad, mask)

    def _forget(self, run: Run) -> None:
        assert self.gone is not None
        for _, parameter, mask, _ in self.filters.parts(self.gone):
            for value in run.optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(mask, 0.0)

    def state(self) -> Mapping[str, Tensor]:
        """Return the mask and what is to come back."""
        found = {f"saved.{name}": tensor for name, tensor in self.saved.items()}
        return found | ({"gone": torch.from_numpy(self.gone)} if self.gone is not None else {})

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.gone = state["gone"].cpu().numpy().astype(np.bool_) if "gone" in state else None
        self.saved = {n.removeprefix("saved."): t.clone() for n, t in state.items() if n.startswith("saved.")}


def bound_rows(gradient: Tensor, mask: Tensor) -> None:
    """Scale the masked slices of a gradient down to the mean norm of the others, where they are larger.

    Args:
        gradient: Changed in place.
        mask: Broadcasts against it along one axis, true for the slices to bound.
    """
    axis = next((a for a, size in enumerate(mask.shape) if size > 1), 0)
    norms = gradient.movedim(axis, 0).flatten(1).norm(dim=1) if gradient.ndim > 1 else gradient.abs()
    chosen = mask.flatten()
    if bool(chosen.all()):
        return
    limit = norms[~chosen].mean()
    factor = torch.where(chosen & (norms > limit), limit / norms.clamp_min(1e-30), torch.ones_like(norms))
    gradient.mul_(factor.view([-1 if a == axis else 1 for a in range(gradient.ndim)]))
