"""Convolutions, plain, grouped and depthwise, and their transposes.

    conv            weight [O, I/g, k...]    group j reads inputs j I/g ... and writes outputs j O/g ...
    conv_transpose  weight [I, O/g, k...]

A plain convolution consumes its input channels and gives birth to its output channels. A grouped one needs equal counts
in all groups, of inputs and of outputs separately, not the same positions; a group may go only as a whole, inputs and
outputs together. With one input channel per group (depthwise, with or without multiplier), or one output per group,
whole groups are all that can go, so the cell's channels are tied.
"""

from __future__ import annotations

import numpy as np

from ..dependency import Role
from ..labels import Atoms, ChannelLabels, Factor
from ..ops import Call
from ..shapes import concrete
from .cells import apart, as_cells
from .registry import RuleContext, rule


@rule("conv")
def convolution(ctx: RuleContext, call: Call) -> ChannelLabels:
    """[N, I, ...] -> [N, O, ...]."""
    return _convolve(ctx, call, out_axis=0, in_axis=1)


@rule("conv_transpose")
def transposed_convolution(ctx: RuleContext, call: Call) -> ChannelLabels:
    """[N, I, ...] -> [N, O, ...] with the weight's first two axes exchanged."""
    return _convolve(ctx, call, out_axis=1, in_axis=0)


def _convolve(ctx: RuleContext, call: Call, out_axis: int, in_axis: int) -> ChannelLabels:
    shape = ctx.shape(call.input)
    batched = ctx.shape(call.node)
    channel = len(shape) - _spatial_rank(ctx, call) - 1
    groups = concrete(call["groups"])
    labels = ctx.collapsed(
        ctx.labels(call.input),
        [a for a in range(len(shape)) if a > channel],
        "a convolution needs one channel per position along the channel axis",
    )
    labels = apart(ctx, labels, channel)
    inputs = ctx.along(labels, channel, shape[channel], "a convolution reads one vector of channels")
    outputs = ctx.fresh(batched[channel])
    _pin_kernel_axes(ctx, call)
    if groups == 1:
        ctx.claim(call, "weight", in_axis, inputs, Role.CONSUMES)
        ctx.claim(call, "weight", out_axis, outputs, Role.PRODUCES)
    else:
        _grouped(ctx, call, inputs.reshape(groups, -1), outputs.reshape(groups, -1), out_axis, in_axis)
    ctx.claim(call, "bias", 0, outputs, Role.CARRIES)
    ctx.claim(call, "weight_scale", 0, outputs, Role.CARRIES)
    ctx.count_attribute(call, "in_channels", inputs)
    ctx.count_attribute(call, "out_channels", outputs)
    return labels.replaced(channel, outputs)


def _grouped(ctx: RuleContext, call: Call, ins: Atoms, outs: Atoms, out_axis: int, in_axis: int) -> None:
    if ins.shape[1] == 1 or outs.shape[1] == 1:
        wide, narrow = (outs, ins) if ins.shape[1] == 1 else (ins, outs)
        ctx.tie(np.broadcast_to(narrow, wide.shape), wide, "channels of one group of a depthwise convolution")
    elif ctx.whole_cells:
        reason = "a group of a convolution goes as a whole"
        inside, outside = (as_cells(ctx, Factor((0, 1), atoms), [0], reason, assumed=False) for atoms in (ins, outs))
        ctx.tie(inside.atoms, outside.atoms, reason)
    else:
        reason = "a grouped convolution needs as many channels in every group"
        ctx.balance(ins, reason, outs)
        ctx.balance(outs, reason, ins)
    first = outs if out_axis == 0 else ins
    second = ins if out_axis == 0 else outs
    role = Role.PRODUCES if out_axis == 0 else Role.CONSUMES
    other = Role.CONSUMES if out_axis == 0 else Role.PRODUCES
    ctx.claim(call, "weight", 0, first.ravel(), role)
    ctx.claim(call, "weight", 1, second, other)
    ctx.count_attribute(call, "groups", outs)


def _spatial_rank(ctx: RuleContext, call: Call) -> int:
    weight = call["weight"]
    return (ctx.shape(weight) if not hasattr(weight, "ndim") else tuple(weight.shape)).__len__() - 2


def _pin_kernel_axes(ctx: RuleContext, call: Call) -> None:
    labels = ctx.labels(call["weight"])
    for axis in range(2, len(ctx.shape(call["weight"])) if labels.factors else 0):
        factor = labels.factor_at(axis)
        if factor is not None:
            ctx.pin(factor.atoms, "an axis of a convolution kernel")
