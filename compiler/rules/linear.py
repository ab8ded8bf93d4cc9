"""Linear layers and embeddings: the last axis.

linear      [..., I] x weight [O, I] -> [..., O]
embedding   [...] x weight [V, D] -> [..., D]
"""

from __future__ import annotations

from ..dependency import Role
from ..labels import ChannelLabels, Factor
from ..ops import Call
from .cells import apart
from .registry import RuleContext, rule


@rule("linear")
def linear(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Consume the last axis and give birth to the output channels; other axes keep their channels."""
    shape = ctx.shape(call.input)
    last = len(shape) - 1
    labels = apart(ctx, ctx.labels(call.input), last)
    inputs = ctx.along(labels, last, shape[last], "a linear layer reads one vector of channels")
    outputs = ctx.fresh(ctx.shape(call.node)[-1])
    ctx.claim(call, "weight", 1, inputs, Role.CONSUMES)
    ctx.claim(call, "weight", 0, outputs, Role.PRODUCES)
    ctx.claim(call, "bias", 0, outputs, Role.CARRIES)
    ctx.claim(call, "weight_scale", 0, outputs, Role.CARRIES)
    ctx.count_attribute(call, "in_features", inputs)
    ctx.count_attribute(call, "out_features", outputs)
    return labels.replaced(last, outputs)


@rule("embedding")
def embedding(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Give birth to the embedding's channels along a new last axis."""
    out = ctx.shape(call.node)
    atoms = ctx.fresh(out[-1])
    ctx.claim(call, "weight", 1, atoms, Role.PRODUCES)
    ctx.count_attribute(call, "embedding_dim", atoms)
    labels = ctx.labels(call["weight"])
    if (rows := labels.factor_at(0)) is not None:
        ctx.pin(rows.atoms, "the rows of an embedding are chosen by the input")
    return ChannelLabels((Factor((len(out) - 1,), atoms),))
