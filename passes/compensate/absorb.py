"""``absorb``: what removed channels gave on average goes into the biases of the layers that read them.

    b'[o] = b[o] + sum over removed j of W0[o, j] m[j]        m[j] = mean of x[j], what output positions read of j

W0 and x are the dense layer's, j runs over its input channels and kernel positions. Zeros that padding adds are part of
the mean: of all single biases, the mean over positions is the best in the least-squares sense. With calibration data m
is measured. Without, it is known where the removed channel comes from a batch norm, alone or with a ReLU behind it, if
what is normalised is taken to be normal, as the norm was trained to make it:

    E[z] = beta      E[relu(z)] = beta Phi(beta / s) + s phi(beta / s)      z ~ N(beta, s^2), s = |gamma|

    m[c, k] = E[c] coverage[k]       coverage[k]: fraction of output positions whose k-th tap lies inside the input

A layer without bias in front of a batch norm lets the norm have it: mean -= what would have been added.

Sources: Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019 (mean replacement); Nagel et al.,
Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, appendix C (the clipped normal).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor, fx

from ...compiler.collection import no_collection
from ...compiler.ops import Call, normalise
from ...compiler.patches import Positions, channel_axis, draw, groups_of, patches
from ...compiler.plan import Kept
from ...compiler.program import Program
from ...compiler.shapes import shape_of
from ..base import PassResult, Remark, RemarkKind
from ..edit import Edit
from .base import Compensation, answers, distance
from .layers import Pairs, Refittable, shift_output
from .stepwise import Batch, Stepwise

SAMPLES: Final = 50_000
"""Output positions per layer that means are taken over."""


@dataclass(frozen=True)
class Absorb(Compensation):
    """Move the mean of removed channels into biases; with calibration data or without."""

    name: ClassVar[str] = "absorb"

    @no_collection()
    def run(self, program: Program) -> PassResult:
        """Absorb; see :class:`~..base.Pass`."""
        compared, edit = self.compared(), Edit(program)
        batches = self.batches(program) if self.data is not None else []
        pairs = Pairs(edit.program, compared.dense, compared.plan)
        remarks: list[Remark] = []
        layers = [layer for layer in pairs.refittable(sums=False) if _removed(layer, pairs).any()]
        runner = Stepwise(compared.dense, batches, [layer.dense.input for layer in layers]) if batches else None
        generator = torch.Generator().manual_seed(self.seed)
        absorbed = 0
        for layer in layers:
            if runner is None:
                found = _expected(layer, compared.dense)
            else:
                found = _measured(layer, runner.take(layer.dense.input), generator)
            if isinstance(found, str):
                remarks.append(Remark(RemarkKind.MISSED, self.name, layer.path, found))
                continue
            lost = (_weight(layer) * _removed(layer, pairs) * found[:, None]).sum(2).flatten()[layer.rows]
            if bool(lost.isfinite().all()):
                absorbed += 1
                shift_output(edit, layer, lost)
        remarks += [Remark(RemarkKind.MISSED, self.name, where, why) for where, why in pairs.refused.items()]
        if not absorbed:
            nothing = Remark(RemarkKind.MISSED, self.name, "", "nothing was absorbed")
            return PassResult(program, changed=False, stats={"layers": 0}, remarks=(*remarks, nothing))
        finished = edit.finish()
        figures = _figures(compared.dense, program, finished, batches)
        return PassResult(finished, changed=True, stats={"layers": absorbed, **figures}, remarks=tuple(remarks))


def _figures(dense: Program, before: Program, after: Program, batches: Sequence[Batch]) -> dict[str, float]:
    if not batches:
        return {}
    wanted = answers(dense, batches)
    return {
        **distance(answers(before, batches), wanted, "before"),
        **distance(answers(after, batches), wanted, "after"),
    }


def _weight(layer: Refittable) -> Tensor:
    """Return the dense layer's weight: float64 [g, O/g, J]."""
    weight: Tensor = layer.dense["weight"].detach().double()
    return weight.reshape(groups_of(layer.dense), -1, weight[0].numel())


def _removed(layer: Refittable, pairs: Pairs) -> Tensor:
    """Return which inputs of the dense layer are gone though their group is left: float64 [g, 1, J], 0 or 1."""
    groups, weight = groups_of(layer.dense), layer.dense["weight"]
    gone = torch.zeros(groups, weight.shape[1], dtype=torch.float64)
    kept: Kept | None = pairs.plan.kept.get(f"{layer.path}.weight", {}).get(1)
    if kept is not None:
        nested = cast("list[list[int]]", kept if isinstance(kept[0], list) else [kept])
        left = dict.fromkeys((layer.rows // (len(weight) // groups)).tolist())
        for group, columns in zip(left, nested, strict=True):
            gone[group] = 1.0
            gone[group, columns] = 0.0
    return gone[:, None, :, None].expand(-1, -1, -1, weight[0, 0].numel()).flatten(2)


def _measured(layer: Refittable, inputs: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Return the mean of what output positions read: float64 [g, J]."""
    total, count, images = torch.zeros(()), 0, sum(map(len, inputs))
    for x in inputs:
        found = patches(layer.dense, x, _positions(layer, len(x), -(-SAMPLES * len(x) // images), generator))
        total = total + found.sum(0, dtype=torch.float64)
        count += len(found)
    return total / count


def _positions(layer: Refittable, images: int, limit: int, generator: torch.Generator) -> Positions:
    """Draw output positions for a batch of as many images."""
    shape = (images, *shape_of(layer.dense.node)[1:])
    axis = channel_axis(layer.dense, torch.empty(shape, device="meta"))
    return draw(shape, axis, limit, generator)


def _expected(layer: Refittable, dense: Program) -> Tensor | str:
    """Return the mean of what output positions read, from the norm in front: float64 [g, J]; or why it is not known."""
    source, relu = layer.dense.input, False
    call = _call(dense, source)
    if call is not None and call.key == "unary" and call.title.lower().rstrip("_") == "relu":
        source, relu = call.input, True
        call = _call(dense, source)
    if call is None or call.key != "batch_norm" or call["weight"] is None or call["bias"] is None:
        return "nothing is absorbed: without data, means are known behind a batch norm (and a ReLU) only"
    if not isinstance(call["weight"], Tensor):
        return "nothing is absorbed: the graph computes the scale of the batch norm in front"
    beta, s = call["bias"].detach().double(), call["weight"].detach().double().abs().clamp_min(1e-12)
    mean = beta
    if relu:
        standard = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
        mean = beta * standard.cdf(beta / s) + s * standard.log_prob(beta / s).exp()
    ones = torch.ones(shape_of(layer.dense.input), dtype=torch.float64)
    whole = _positions(layer, len(ones), 1 << 62, torch.Generator())
    coverage = patches(layer.dense, ones, whole).mean(0)  # [g, J]
    taps = coverage.shape[1] // layer.dense["weight"].shape[1]
    return mean.reshape(len(coverage), -1).repeat_interleave(taps, 1) * coverage


def _call(program: Program, node: Any) -> Call | None:
    return normalise(program, node) if isinstance(node, fx.Node) and node.op.startswith("call_") else None
