"""Spatial operations that treat every channel alike: pooling, interpolation, and the reductions over axes.

pools, interpolate   the axes after the channel axis are mixed
mean, sum, amax ...  the reduced axes are mixed and, without keepdim, gone; over channels, these are figures of the kept
pixel_shuffle        [N, C r^2, H, W] -> [N, C, H r, W r]: the r^2 channels of one output are tied
"""

from __future__ import annotations

import numpy as np

from ..labels import ChannelLabels
from ..ops import Call
from ..shapes import concrete, is_tensor, value_of
from .elementwise import align
from .registry import Labels, RuleContext, rule


@rule("max_pool", "avg_pool", "lp_pool", "adaptive_pool", "interpolate")
def spatial(ctx: RuleContext, call: Call) -> Labels:
    """[N, C, ...] -> [N, C, ...]: the spatial axes need one label each."""
    shape = ctx.shape(call.input)
    rank = len(shape) - 2 if call.key == "interpolate" else _spatial_rank(call)
    labels = ctx.collapsed(
        ctx.labels(call.input), range(len(shape) - rank, len(shape)), f"{call.title} mixes positions"
    )
    labels = ctx.regular(labels, f"{call.title} needs full rows")
    return (labels, labels) if isinstance(value_of(call.node), tuple) else labels


@rule("grid_sample")
def grid_sample(ctx: RuleContext, call: Call) -> ChannelLabels:
    """[N, C, ...] sampled at a grid [N, ..., 2 or 3]: positions are mixed, channels are not; the grid has none."""
    ctx.pin_all(ctx.labels(call["grid"]), "coordinates")
    rank = len(ctx.shape(call.input))
    labels = ctx.collapsed(ctx.labels(call.input), range(2, rank), f"{call.title} mixes positions")
    return ctx.regular(labels, f"{call.title} needs full rows")


def _spatial_rank(call: Call) -> int:
    return next(int(c) for c in reversed(call.title) if c.isdigit())


@rule("reduce", "variance", "norm")
def reduce(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Mix the reduced axes; without ``keepdim`` renumber the others.

    The first of them may be one vector of channels: the result is a figure of those that are kept, as with a norm.
    """
    return _reduce(ctx, call, of_kept=True)


@rule("extremum")
def extremum(ctx: RuleContext, call: Call) -> Labels:
    """``max``: of all, along one axis (values and indices), or of two tensors."""
    if is_tensor(call["dim"]):
        return align(ctx, call, [call.input, call["dim"]])
    labels = _reduce(ctx, call)
    return (labels, labels) if isinstance(value_of(call.node), tuple) else labels


def _reduce(ctx: RuleContext, call: Call, *, of_kept: bool = False) -> ChannelLabels:
    rank = len(ctx.shape(call.input))
    dim = concrete(call["dim"])
    dims = range(rank) if dim is None or dim == () else [dim] if isinstance(dim, int) else dim
    axes = sorted({d % rank for d in dims})
    labels = ctx.labels(call.input)
    over = [f for f in labels.factors if set(f.axes) & set(axes)]
    if of_kept and len(over) == 1 and over[0].axes == (axes[0],):
        ctx.norms[ctx.node] = over[0].atoms
        labels = ChannelLabels(labels.without(over[0].axes[0]), labels.origin)
    labels = ctx.collapsed(labels, axes, f"{call.title} mixes the channels along this axis")
    labels = ctx.regular(labels, f"{call.title} needs full rows")
    if call["keepdim"]:
        return labels
    kept = [a for a in range(rank) if a not in axes]
    return labels.renamed(kept.index)


@rule("pixel_shuffle")
def pixel_shuffle(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Tie the r^2 input channels that make one output channel."""
    shape, r = ctx.shape(call.input), concrete(call["upscale_factor"])
    channel = len(shape) - 3
    labels = ctx.collapsed(ctx.labels(call.input), [channel + 1, channel + 2], "pixel shuffle mixes positions")
    cells = ctx.along(labels, channel, shape[channel], "pixel shuffle needs one vector of channels").reshape(-1, r * r)
    ctx.tie(np.broadcast_to(cells[:, :1], cells.shape), cells, "pixel shuffle makes one channel of these")
    return labels.replaced(channel, cells[:, 0].copy())


@rule("pixel_unshuffle")
def pixel_unshuffle(ctx: RuleContext, call: Call) -> ChannelLabels:
    """[N, C, H r, W r] -> [N, C r^2, H, W]: every channel is repeated r^2 times."""
    shape, r = ctx.shape(call.input), concrete(call["downscale_factor"])
    channel = len(shape) - 3
    labels = ctx.collapsed(ctx.labels(call.input), [channel + 1, channel + 2], "pixel unshuffle mixes positions")
    if labels.factor_at(channel) is None:
        return labels
    atoms = ctx.along(labels, channel, shape[channel], "pixel unshuffle needs one vector of channels")
    return labels.replaced(channel, np.repeat(atoms, r * r))
