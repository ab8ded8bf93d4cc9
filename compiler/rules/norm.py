"""Normalisations carry channels: statistics are per channel, or over the channels that are kept.

batch_norm, instance_norm   one mean and variance per channel of axis 1
layer_norm, rms_norm        over the last dimensions; a pruned axis is normalised over the kept channels
group_norm                  over the channels of each of g groups: equal counts per group
prelu                       one slope per channel of axis 1, or one for all
"""

from __future__ import annotations

from ..dependency import Role
from ..labels import ChannelLabels, Factor
from ..ops import Call
from ..shapes import concrete
from .cells import apart, as_cells
from .registry import RuleContext, rule

_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


@rule("batch_norm", "instance_norm")
def batch_norm(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Axis 1 of [N, C, ...]."""
    shape = ctx.shape(call.input)
    axis = 1 if call.key == "batch_norm" or call.module is None else len(shape) - _rank(call) - 1
    labels = ctx.collapsed(ctx.labels(call.input), range(2, len(shape)), "statistics are shared along this axis")
    labels = apart(ctx, labels, axis)
    atoms = ctx.along(labels, axis, shape[axis], "normalisation needs one vector of channels")
    for name in _PER_CHANNEL:
        ctx.claim(call, name, 0, atoms, Role.CARRIES)
    ctx.count_attribute(call, "num_features", atoms)
    return labels.replaced(axis, atoms)


def _rank(call: Call) -> int:
    return int(call.title[-2])


@rule("layer_norm", "rms_norm")
def layer_norm(ctx: RuleContext, call: Call) -> ChannelLabels:
    """The last ``len(normalized_shape)`` axes; at most one of them may carry removable channels."""
    shape, labels = ctx.shape(call.input), ctx.labels(call.input)
    normalized = concrete(call["normalized_shape"])
    dims = 1 if isinstance(normalized, int) else len(normalized)
    first = len(shape) - dims
    labelled = [a for a in range(first, len(shape)) if labels.factor_at(a) is not None]
    for axis in labelled[1:]:
        for factor in labels.factors:
            if axis in factor.axes:
                ctx.pin(factor.atoms, "a layer norm over several channel axes")
    if labelled:
        axis = labelled[0]
        labels = apart(ctx, labels, axis)
        atoms = ctx.along(labels, axis, shape[axis], "a layer norm has one weight per channel")
        for name in ("weight", "bias") if call.key == "layer_norm" else ("weight",):
            ctx.claim(call, name, axis - first, atoms, Role.CARRIES)
        ctx.count_attribute(call, "normalized_shape", atoms, item=axis - first)
        ctx.norms[ctx.node] = atoms
    return ctx.regular(labels, "a layer norm needs full rows")


@rule("group_norm")
def group_norm(ctx: RuleContext, call: Call) -> ChannelLabels:
    """[N, C, ...] with C in g groups."""
    shape = ctx.shape(call.input)
    labels = ctx.collapsed(ctx.labels(call.input), range(2, len(shape)), "statistics are shared along this axis")
    atoms = ctx.along(labels, 1, shape[1], "a group norm has one weight per channel")
    cells = atoms.reshape(concrete(call["num_groups"]), -1)
    if len(cells) > 1 and cells.shape[1] > 1:
        if ctx.whole_cells:
            as_cells(ctx, Factor((0, 1), cells), [0], "a group of a group norm goes as a whole", assumed=False)
        else:
            ctx.balance(cells, "a group norm needs as many channels in every group", droppable=True)
    for name in ("weight", "bias"):
        ctx.claim(call, name, 0, atoms, Role.CARRIES)
    ctx.count_attribute(call, "num_channels", atoms)
    ctx.count_attribute(call, "num_groups", cells)
    ctx.norms[ctx.node] = cells
    return labels.replaced(1, atoms)


@rule("prelu")
def prelu(ctx: RuleContext, call: Call) -> ChannelLabels:
    """One slope for all channels, or one per channel of axis 1."""
    shape, labels = ctx.shape(call.input), ctx.labels(call.input)
    weight = call["weight"]
    slopes = (tuple(weight.shape) if hasattr(weight, "ndim") else ctx.shape(weight))[0]
    if slopes > 1:
        labels = apart(ctx, labels, 1)
        atoms = ctx.along(labels, 1, shape[1], "a slope per channel")
        ctx.claim(call, "weight", 0, atoms, Role.CARRIES)
        ctx.count_attribute(call, "num_parameters", atoms)
    return ctx.regular(labels, "an activation needs full rows")
