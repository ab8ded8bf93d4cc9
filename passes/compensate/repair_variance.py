"""``repair-variance``: every channel gets back the mean and the variance that it had before pruning.

    y'[c] = (y[c] - m[c]) sigma[c] / s[c] + mu[c]

y is what a layer (with its batch norm, where one follows) gives in the pruned program, with mean m and deviation s over
the calibration data, and mu and sigma are those of the same channel in the dense program. The scale and the shift go
into the norm's gamma and beta, or else into the layer's weight and bias:

    gamma'[c] = gamma[c] r      beta'[c] = (beta[c] - m[c]) r + mu[c]      r = sigma[c] / s[c]
    W'[o] = W[o] r              b'[o] = (b[o] - m[o]) r + mu[o]

Layers are taken in graph order, each seeing what those before it now give. A channel that pruning has left constant
(s = 0) keeps its scale and gets its mean.

Source: Jordan et al., REPAIR: REnormalizing Permuted Activations for Interpolation Repair, ICLR 2023, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, fx

from ...compiler.collection import no_collection
from ...compiler.patches import channel_axis
from ...compiler.program import Program
from ..base import PassResult, Remark, RemarkKind
from ..edit import Edit
from .base import Compensation
from .layers import Pairs, Refittable, affine, set_tensors
from .sequential import Sequential, channel_statistics

LARGEST_SCALE: Final = 10.0
"""A channel that would have to grow by more has lost its signal; what is left of it would be noise, blown up."""


@dataclass(frozen=True)
class RepairVariance(Compensation):
    """Match mean and variance of every channel behind a layer that pruning reaches."""

    name: ClassVar[str] = "repair-variance"

    @no_collection()
    def run(self, program: Program) -> PassResult:
        """Repair; see :class:`~..base.Pass`."""
        compared, batches, edit = self.compared(), self.batches(program), Edit(program)
        pairs = Pairs(edit.program, compared.dense, compared.plan)
        layers = {layer.call.node: layer for layer in pairs.refittable(sums=False)}
        remarks = [Remark(RemarkKind.MISSED, self.name, where, why) for where, why in pairs.refused.items()]
        if not layers:
            nothing = Remark(RemarkKind.MISSED, self.name, "", "no layer reads pruned channels")
            return PassResult(program, changed=False, stats={"layers": 0}, remarks=(*remarks, nothing))

        def repair(node: fx.Node) -> None:
            layer = layers.get(node)
            if layer is None:
                return
            given = [_given(edit, layer, x) for x in both.now.take(layer.call.input)]
            wanted = both.dense.take(layer.dense_end)
            axis = channel_axis(layer.call, wanted[0])
            mean, variance, _ = channel_statistics(given, axis)
            aim, spread, _ = channel_statistics([y.index_select(axis, layer.rows) for y in wanted], axis)
            ratio = (spread / variance.clamp_min(1e-30)).sqrt().clamp_max(LARGEST_SCALE)
            ratio = torch.where(variance > 0, ratio, 1.0)
            if bool(ratio.isfinite().all() and mean.isfinite().all() and aim.isfinite().all()):
                _rescale(edit, layer, ratio, aim - mean * ratio)
                return
            reason = "not repaired: there are infinities in what it gives"
            remarks.append(Remark(RemarkKind.MISSED, self.name, layer.path, reason))

        self.progress(f"repairing {len(layers)} layers")
        reads, ends = ([layer.call.input for layer in layers.values()], [layer.dense_end for layer in layers.values()])
        both = Sequential(edit, compared, batches, reads, ends, repair)
        stats = {"layers": len(layers), **both.run(program)}
        return PassResult(edit.finish(), changed=True, stats=stats, remarks=tuple(remarks))


def _given(edit: Edit, layer: Refittable, x: Tensor) -> Tensor:
    """Return what the layer and its norm make of an input."""
    module: Any = edit.program.owner(layer.path)
    with torch.no_grad():
        y: Tensor = module(x)
    if layer.norm is None:
        return y
    scale, shift = affine(layer.norm, y.shape[1])
    form = [-1 if axis == channel_axis(layer.call, y) else 1 for axis in range(y.ndim)]
    return y.double() * scale.reshape(form) + shift.reshape(form)


def _rescale(edit: Edit, layer: Refittable, ratio: Tensor, shift: Tensor) -> None:
    """Let ratio * y + shift take the place of y."""
    path = layer.path
    if layer.norm is not None and layer.norm["weight"] is not None and layer.norm["bias"] is not None:
        path = layer.norm.owner
    elif layer.norm is not None:  # without gamma and beta: (y - mean) / d is scaled by way of mean and variance
        scale, offset = affine(layer.norm, len(ratio))
        eps = float(layer.norm["eps"])
        variance = (ratio * scale).reciprocal().square() - eps
        mean = -(ratio * offset + shift) / (ratio * scale)
        set_tensors(edit, layer.norm.owner, {"running_mean": mean, "running_var": variance})
        return
    old: Any = edit.program.owner(path)
    weight = old.weight.detach().double()
    bias = 0.0 if old.bias is None else old.bias.detach().double()
    rows = ratio.reshape(-1, *[1] * (weight.ndim - 1))
    set_tensors(edit, path, {"weight": weight * rows, "bias": bias * ratio + shift})
