"""``equalize``: the channels between two layers get equal weight ranges on both sides, so that integers fit them all.

    layer 1 -> f -> layer 2       f works channel by channel, f(s x) = s f(x) for every s > 0

    W2 f(W1 x + b1)  =  W2 S f(S^-1 (W1 x + b1))       S = diag(s)

    W1'[i] = W1[i] / s[i]     b1'[i] = b1[i] / s[i]     W2'[:, i] = W2[:, i] s[i]
    s[i] = sqrt(r1[i] r2[i]) / r2[i]                    r1[i] = max |W1[i]|, r2[i] = max |W2[:, i]|

after which r1'[i] = r2'[i] = sqrt(r1[i] r2[i]). A layer between two others takes part in two pairs, each undoing a
little of the other's, so all pairs are gone over until the scales settle.

    conv    weight [g O/g, I/g, k...]   output channel: a row; input channel: a column of one of g blocks of rows
    linear  weight [O, I p]             input channel: p columns in a row, where p positions were flattened

One formula does for dense, grouped and depthwise convolutions: the ranges over a kernel's positions are [g, O/g, I/g].
Source: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019, section 4.1.
All of it is exact in real arithmetic; computed in float64 and rounded once. What trains, trains on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, fx

from ..compiler.ops import Call
from ..compiler.program import Program
from ..compiler.shapes import concrete, is_tensor, shape_of
from .base import Contract, Pass, PassResult, Remark, RemarkKind
from .edit import Edit

LARGEST_SCALE: Final = 1e3
"""Scales stay in [1 / LARGEST_SCALE, LARGEST_SCALE]. A channel that is nearly dead on one side would get one without
bound, and its bias and activations with it: that channel would then set the range of the whole tensor, which has one
scale when it is quantized, or overflow in half precision."""
SETTLED: Final = 1e-2
"""Relative change of a scale that counts as none: of a range, 8 bits resolve about as much."""
SWEEPS: Final = 40
"""How often all pairs are gone over at most. Every sweep is exact: stopping early costs balance, not truth."""

_LAYERS: Final = ("conv", "linear")
"""Transposed convolutions are not among them: their weights stay in float, for which equal ranges gain nothing."""
_HOMOGENEOUS: Final = frozenset(
    "relu leaky_relu leakyrelu identity dropout dropout1d dropout2d dropout3d feature_dropout stochastic_depth".split()
)
_POOLS: Final = ("max_pool", "avg_pool", "adaptive_pool")
_BLOCKING: Final = frozenset("unary prelu softmax batch_norm instance_norm group_norm layer_norm rms_norm".split())
"""Operations of one tensor that keep its shape; where they are not homogeneous, a pair is there, but blocked."""


@dataclass(frozen=True)
class Equalize(Pass):
    """Equalize the weight ranges of neighbouring layers; say what stands between those that cannot be."""

    name: ClassVar[str] = "equalize"
    contract: ClassVar[Contract] = Contract.EXACT

    def run(self, program: Program) -> PassResult:
        """Equalize; see :class:`~.base.Pass`."""
        edit = Edit(program)
        pairs: list[_Pair] = []
        remarks: list[Remark] = []
        for node in edit.graph.nodes:
            first = _layer(edit, node)
            pair = _pair(edit, first) if first is not None else None
            if pair is None:
                continue
            if pair.blocked is None:
                pairs.append(pair)
            else:
                remarks.append(Remark(RemarkKind.MISSED, self.name, pair.first.owner, _why(pair.second, pair.blocked)))
        scaled = [(pair, scale) for pair, scale in zip(pairs, _settle(pairs), strict=True) if _off_one(scale) > SETTLED]
        layers = _rescale(edit, scaled)
        for pair, scale in scaled:
            what = f"{len(scale)} channels equalized with {pair.second.owner}"
            remarks.append(Remark(RemarkKind.APPLIED, self.name, pair.first.owner, what))
        stats = {"pairs": len(scaled), "layers": layers}
        if not scaled:
            return PassResult(program, changed=False, stats=stats, remarks=tuple(remarks))
        return PassResult(edit.finish(), changed=True, stats=stats, remarks=tuple(remarks))


# Finding pairs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two layers, the second of which alone reads the first, operations that scale with their input in between."""

    first: Call
    second: Call
    blocked: Call | None
    """The first operation in between through which no scale is moved."""

    @property
    def channels(self) -> int:
        """The channels between them."""
        return len(self.first["weight"])


def _layer(edit: Edit, node: fx.Node) -> Call | None:
    """Return a convolution or linear layer with a float weight that nothing else depends on."""
    call = edit.call(node)
    if call is None or call.key not in _LAYERS or call.module is None or edit.is_shared(call):
        return None
    return call if call["weight"].is_floating_point() and is_tensor(call.input) else None


def _pair(edit: Edit, first: Call) -> _Pair | None:
    """Follow the output of a layer to the one layer that reads it, if there is one."""
    node, blocked = first.node, None
    axis = _channel_axis(first, node)
    while len(readers := _readers(edit, node)) == 1:
        (reader,) = readers
        call = edit.call(reader)
        if call is None or call.params.get("input") is not node or not is_tensor(reader):
            return None
        if call.key in _LAYERS:
            second = _layer(edit, reader)
            found = second is not None and _reads(second, axis, len(first["weight"]))
            return _Pair(first, second, blocked) if second is not None and found else None
        if not _carries_scales(call, axis):
            if call.key not in _BLOCKING:
                return None
            blocked = blocked or call
        node = reader
    return None


def _readers(edit: Edit, node: fx.Node) -> list[fx.Node]:
    """Return the users of a tensor that read its values, not only its shape."""

    def sizes(user: fx.Node) -> bool:
        call = edit.call(user)
        return call is not None and call.key in ("size", "shape", "rank") and not is_tensor(user)

    return [user for user in node.users if not sizes(user)]


def _channel_axis(call: Call, node: fx.Node) -> int:
    """Return the axis of a layer's input or output that its weight is about; batches may be missing."""
    return len(shape_of(node)) - call["weight"].ndim + 1


def _reads(second: Call, axis: int, channels: int) -> bool:
    """Tell whether a layer mixes the values along ``axis``; a linear layer may read several of each channel."""
    given = shape_of(second.input)
    return axis == _channel_axis(second, second.input) and (second.key == "linear" or given[axis] == channels)


def _carries_scales(call: Call, axis: int) -> bool:
    """Tell whether f(s x) = s f(x) for one s > 0 per channel, with the channels along the same axis in x and f(x)."""
    before, after = shape_of(call.input), shape_of(call.node)
    if call.key == "copy" or (call.key == "unary" and call.title.rstrip("_").lower() in _HOMOGENEOUS):
        return True
    if call.key in _POOLS:  # over the last axes; MaxPool3d takes [C, D, H, W] too
        return axis < len(before) - int(call.title[-2])
    if call.key == "reduce" and call.title == "mean" and call["dim"] is not None:
        dims = concrete(call["dim"])
        return all(d % len(before) > axis for d in ([dims] if isinstance(dims, int) else dims))
    if call.key in ("flatten", "reshape", "squeeze"):  # p positions of a channel become p neighbours, or stay behind it
        same = len(after) > axis and after[axis] == before[axis]
        return before[:axis] == after[:axis] and (same or len(after) == axis + 1)
    return False


def _why(second: Call, blocked: Call) -> str:
    hint = "; fold batch norms first (fold-bn)" if blocked.key == "batch_norm" else ""
    name = blocked.owner or blocked.node.name
    return f"not equalized with {second.owner}: no scale is moved through {blocked.title} ({name}){hint}"


# Scales ---------------------------------------------------------------------------------------------------------------


def _settle(pairs: Sequence[_Pair]) -> list[Tensor]:
    """Return s of every pair: float64 [C]."""
    ranges = {pair.first.owner: _ranges(pair.first) for pair in pairs}
    ranges |= {pair.second.owner: _ranges(pair.second, pair.channels) for pair in pairs}
    scales = [torch.ones(pair.channels, dtype=torch.float64, device=pair.first["weight"].device) for pair in pairs]
    for _ in range(SWEEPS):
        largest = 0.0
        for number, pair in enumerate(pairs):
            one, two = ranges[pair.first.owner], ranges[pair.second.owner]
            scale = _equal(scales[number], one.amax(2).flatten(), two.amax(1).flatten())
            change = scale / scales[number]
            one /= change.reshape(*one.shape[:2], 1)
            two *= change.reshape(len(two), 1, -1)
            scales[number] = scale
            largest = max(largest, _off_one(change))
        if largest <= SETTLED:
            break
    return scales


def _equal(scale: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the scale so far times sqrt(r1 r2) / r2, within its limits; that of dead channels stays. All are [C]."""
    product = first * second
    live = (product > 0) & product.isfinite()
    return torch.where(live, scale * product.sqrt() / second, scale).clamp(1 / LARGEST_SCALE, LARGEST_SCALE)


def _off_one(scale: Tensor) -> float:
    return float(scale.log().abs().max())


def _ranges(layer: Call, channels: int | None = None) -> Tensor:
    """Return max |W| over the positions of a kernel, float64 [g, O/g, I/g]."""
    return _by_group(layer, channels).abs().amax(3)


def _by_group(layer: Call, channels: int | None) -> Tensor:
    """Return the weight as float64 [g, O/g, I/g, positions]; ``channels`` is g I/g where positions were flattened."""
    weight, groups = layer["weight"], int(layer.params.get("groups", 1))
    columns = weight.shape[1] if channels is None else channels // groups
    return weight.detach().double().reshape(groups, len(weight) // groups, columns, -1)


def _rescale(edit: Edit, scaled: Sequence[tuple[_Pair, Tensor]]) -> int:
    """Give all layers of these pairs their weights and biases; return how many layers that are."""
    outputs: Mapping[str, Tensor] = {pair.first.owner: scale for pair, scale in scaled}
    inputs: Mapping[str, Tensor] = {pair.second.owner: scale for pair, scale in scaled}
    layers = {call.owner: call for pair, _ in scaled for call in (pair.first, pair.second)}
    for owner, call in layers.items():
        weight, bias = call["weight"], call["bias"]
        into, out = inputs.get(owner), outputs.get(owner)
        wide = _by_group(call, None if into is None else len(into))
        if into is not None:
            wide = wide * into.reshape(len(wide), 1, -1, 1)
        if out is not None:
            wide = wide / out.reshape(*wide.shape[:2], 1, 1)
        values = {"weight": wide.reshape(weight.shape)}
        if out is not None and bias is not None:
            values["bias"] = bias.detach().double() / out
        edit.set_parameters(owner, values)
    return len(layers)
