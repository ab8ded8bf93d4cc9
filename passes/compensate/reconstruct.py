"""``reconstruct``: layers behind pruned channels are refitted, so that they give again what they gave.

    minimise over W, b    mean over s of |a (W x_s + b) + t + other_s - y_s[K]|^2  +  ridge |W - W0|^2

x is what the layer reads in the *pruned* program, refitted up to here, y what stands at the end of the affine chain
behind the layer in the *dense* program, K its channels that are left. The chain is the layer, its batch norm (a, t),
and the addition that ends a residual branch: the sum carries the errors of the trunk too, which the branch then makes
up for. See :mod:`.layers` for the chain and :mod:`.regression` for the solution. Layers are taken in graph order; those
that lost no channels but stand behind one that did are refitted as well.

Where only a ReLU reads the end, values below 0 need not be met, only be below 0. Of all z with relu(z) = relu(y) the
nearest to the present result takes the place of y, which is then fitted again; every round lowers the error:

    z = y where y > 0, else min(present, 0)

    conv    W [O', I'/g, k...]      x: patches [S, g, J]      linear    W [O', I']

The bias goes into the layer's own, or out of the mean of the batch norm behind (mean -= b), or is new.

Sources: He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, eq. 3, and section 3.3 for
residual branches; Zhang et al., Accelerating Very Deep Convolutional Networks, TPAMI 2016, sections 3.2 (the ReLU) and
3.3 (inputs from the approximated net).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor, fx

from ...compiler.collection import no_collection
from ...compiler.errors import OptionError
from ...compiler.patches import channel_axis, draw, groups_of, patches
from ...compiler.program import Program
from ..base import PassResult, Remark, RemarkKind
from ..edit import Edit
from .base import Compensation
from .layers import Pairs, Refittable, affine, shift_output
from .regression import Fit, Regression
from .sequential import Sequential
from .stepwise import Batch

MOST: Final = 1 << 27
"""Numbers that the patches of one layer hold at most: half a gigabyte."""
WIDEST: Final = 5000
"""Inputs per output up to which as many equations are solved; beyond, no more samples are looked at than this."""
SMALLEST_SCALE: Final = 1e-6
"""A batch norm that scales a channel by less hands on nothing of the layer; such a channel is not fitted."""


@dataclass(frozen=True)
class Reconstruct(Compensation):
    """Refit every layer that pruning reaches."""

    name: ClassVar[str] = "reconstruct"

    target: Literal["sum", "layer"] = "sum"
    """What is to be met: the sum behind a layer that ends a residual branch, or each layer's own output only."""
    rounds: int = 2
    """How often layers in front of a ReLU are fitted again, with values below 0 left free."""
    samples: int = 20_000
    """Output positions per layer that are looked at."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: A value is out of range.
        """
        for name, number, least in (("rounds", self.rounds, 0), ("samples", self.samples, 1)):
            if number < least:
                raise OptionError(f"{name}={number} is out of range", hint=f"{name} is a whole number from {least} up")

    @no_collection()
    def run(self, program: Program) -> PassResult:
        """Refit; see :class:`~..base.Pass`."""
        run = _Run(self, program, self.batches(program))
        refused = tuple(Remark(RemarkKind.MISSED, self.name, where, why) for where, why in run.pairs.refused.items())
        if not run.layers:
            nothing = Remark(RemarkKind.MISSED, self.name, "", "nothing was refitted: no layer reads pruned channels")
            return PassResult(program, changed=False, stats={"layers": 0}, remarks=(*refused, nothing))
        stats = run.refit(program)
        return PassResult(run.edit.finish(), changed=True, stats=stats, remarks=(*run.remarks, *refused))


@dataclass(frozen=True, eq=False)
class _Sample:
    """What is known of a layer at the positions that were drawn."""

    inputs: Tensor
    """x: [S, g, J]."""
    wanted: Tensor
    """y[K]: [S, O']."""
    scale: Tensor
    """a: [O']."""
    base: Tensor
    """t + other: [S, O'] or [O']."""


class _Run:
    """One way through both programs at once."""

    def __init__(self, options: Reconstruct, program: Program, batches: list[Batch]) -> None:
        compared = options.compared()
        self.options = options
        self.edit = Edit(program)
        self.pairs = Pairs(self.edit.program, compared.dense, compared.plan)
        self.layers = list(self.pairs.refittable(sums=options.target == "sum"))
        self.remarks: list[Remark] = []
        self._errors: list[tuple[float, float]] = []
        self._left = {layer.call.node: layer for layer in self.layers}
        self._generator = torch.Generator().manual_seed(options.seed)
        reads = [layer.call.input for layer in self.layers]
        others = [layer.other for layer in self.layers if layer.other is not None]
        ends = [layer.dense_end for layer in self.layers]
        self._both = Sequential(self.edit, compared, batches, [*reads, *others], ends, self._prepare)

    def refit(self, program: Program) -> dict[str, int | float]:
        """Refit all layers; return figures."""
        self.options.progress("running the pruned network")
        figures = self._both.run(program)
        means = [sum(errors) / len(errors) for errors in zip(*self._errors, strict=True)] or [0.0, 0.0]
        layers: dict[str, int | float] = {"layers": len(self._errors)}
        return {**layers, "layer_error_before": means[0], "layer_error_after": means[1], **figures}

    def _prepare(self, node: fx.Node) -> None:
        """Refit a layer right before it runs."""
        layer = self._left.pop(node, None)
        if layer is None:
            return
        self.options.progress(f"refitting {layer.path} ({len(self.layers) - len(self._left)} of {len(self.layers)})")
        sample = self._sample(layer)
        if not all(bool(part.isfinite().all()) for part in (sample.inputs, sample.wanted, sample.base, sample.scale)):
            self._say(RemarkKind.MISSED, layer, "not refitted: there are infinities in what it reads or is to give")
            return
        old: Any = self.edit.program.owner(layer.path)
        fit, errors = _fitted(layer, sample, old, self.options.rounds)
        has = torch.zeros(len(layer.rows)) if old.bias is None else old.bias.detach()
        shift_output(self.edit, layer, fit.bias.flatten() - has.double(), fit.weight)
        self._errors.append(errors)
        self._say(
            RemarkKind.APPLIED, layer, f"refitted: relative error of what it gives {errors[0]:.3g} -> {errors[1]:.3g}"
        )

    def _sample(self, layer: Refittable) -> _Sample:
        call = layer.call
        inputs, wanted = self._both.now.take(call.input), self._both.dense.take(layer.dense_end)
        others = self._both.now.take(layer.other) if layer.other is not None else None
        width = call["weight"][0].numel()
        limit = min(self.options.samples, MOST // (width * groups_of(call)), WIDEST if width > WIDEST else MOST)
        images = sum(map(len, wanted))
        read: list[Tensor] = []
        ends: list[Tensor] = []
        base: list[Tensor] = []
        for number, (x, y) in enumerate(zip(inputs, wanted, strict=True)):
            axis = channel_axis(call, y)
            at = draw(y.shape, axis, -(-limit * len(y) // images), self._generator)
            read.append(patches(call, x, at))
            ends.append(at.take(y, axis).index_select(1, layer.rows))
            if others is not None:
                base.append(at.take(others[number], axis))
        kind = torch.promote_types(read[0].dtype, torch.float32)
        scale, shift = (part.to(kind) for part in affine(layer.norm, len(layer.rows)))
        rest = torch.cat(base).to(kind) + shift if base else shift
        return _Sample(torch.cat(read).to(kind), torch.cat(ends).to(kind), scale, rest)

    def _say(self, kind: RemarkKind, layer: Refittable, what: str) -> None:
        self.remarks.append(Remark(kind, self.options.name, layer.path, what))


def _fitted(layer: Refittable, sample: _Sample, old: Any, rounds: int) -> tuple[Fit, tuple[float, float]]:
    """Fit a layer; return it with the relative errors before and after."""
    groups = groups_of(layer.call)
    start = old.weight.detach().double().reshape(groups, -1, sample.inputs.shape[2])
    bias = torch.zeros_like(start[..., 0]) if old.bias is None else old.bias.detach().double().reshape(groups, -1)
    handed_on = sample.scale.abs() > SMALLEST_SCALE
    scale = torch.where(handed_on, sample.scale, 1.0)

    def needed(end: Tensor) -> Tensor:
        """Return what the layer has to give for this to stand at the end of the chain."""
        return ((end - sample.base) / scale).reshape(len(end), groups, -1)

    regression = Regression(sample.inputs, start, needed(sample.wanted))

    def given(fit: Fit) -> Tensor:
        return regression.predict(fit).flatten(1) * scale + sample.base

    fit = regression.fit(needed(sample.wanted))
    end = given(fit)
    for _ in range(rounds if layer.relu else 0):
        fit = regression.fit(needed(torch.where(sample.wanted > 0, sample.wanted, end.clamp_max(0.0))))
        end = given(fit)
    handed = handed_on.reshape(groups, -1)
    fit = Fit(torch.where(handed[..., None], fit.weight, start), torch.where(handed, fit.bias, bias))
    return fit, (_error(layer, sample, given(Fit(start, bias))), _error(layer, sample, end))


def _error(layer: Refittable, sample: _Sample, end: Tensor) -> float:
    """Return the root mean square error relative to the spread of what is wanted."""
    wanted = sample.wanted
    if layer.relu:
        wanted, end = wanted.relu(), end.relu()
    off, spread = ((a - b).square().sum(dtype=torch.float64) for a, b in ((end, wanted), (wanted, wanted.mean(0))))
    return float((off / spread.clamp_min(1e-30)).sqrt())
