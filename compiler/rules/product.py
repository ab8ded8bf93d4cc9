"""Products of activations: matmul, einsum, attention, and scaling to unit length.

Axes are letters, as in einsum. Where a letter is summed over, what stands at one position in one operand meets what
stands there in the others, so the channels are tied; where it stays, the result has the operand's channels.

    matmul      [..., i, k] x [..., k, j] -> [..., i, j]
    attention   q [..., i, k], k [..., j, k], v [..., j, d] -> [..., i, d]

Channels of attention heads stand over two letters, (head, channel). Every head keeps as many, each its own; a summed
letter needs the same ones in both operands, head by head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..labels import Atoms, ChannelLabels, Factor
from ..ops import Call
from ..shapes import is_tensor
from .registry import RuleContext, rule


@rule("matmul")
def matmul(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Sum over the last axis of one and the last but one of the other; leading axes lie over each other."""
    left, right = call.input, call["other"]
    ranks = [len(ctx.shape(x)) for x in (left, right)]
    if min(ranks) < 2:
        return ctx.unknown(call, "a product with a vector")
    batch = "abcdefgh"[: max(ranks) - 2]
    terms = [batch[len(batch) - (ranks[0] - 2) :] + "ik", batch[len(batch) - (ranks[1] - 2) :] + "kj"]
    return contract(ctx, call, [left, right], terms, batch + "ij")


@rule("attention")
def attention(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Softmax over j of q k^T, times v. The mask has no channels; a scale that follows from the width must be given."""
    q, k, v = call["query"], call["key"], call["value"]
    rank = len(ctx.shape(q))
    if len({len(ctx.shape(x)) for x in (q, k, v)}) > 1 or call.params.get("enable_gqa"):
        return ctx.unknown(call, "attention over different numbers of axes")
    ctx.pin_all(ctx.env.get(call["attn_mask"]) if is_tensor(call["attn_mask"]) else None, "a mask of attention")
    batch = "abcdefgh"[: rank - 2]
    if call["scale"] is None:
        ctx.pin_all([ctx.labels(q), ctx.labels(k)], "attention scales by the number of channels")
    contract(ctx, call, [q, k], [batch + "ik", batch + "jk"], batch + "ij")
    return contract(ctx, call, [None, v], [batch + "ij", batch + "jd"], batch + "id")


@rule("einsum")
def einsum(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Any product with an equation that names its result."""
    operands = call["operands"] if isinstance(call["operands"], (tuple, list)) else (call["operands"],)
    equation = call["equation"]
    if not isinstance(equation, str) or "." in equation or "->" not in equation or not all(map(is_tensor, operands)):
        return ctx.unknown(call, "a product without an explicit equation")
    given, _, result = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    if any(len(set(term)) < len(term) for term in terms) or len(terms) != len(operands):
        return ctx.unknown(call, "a product that takes a diagonal")
    return contract(ctx, call, list(operands), terms, result)


@rule("normalize")
def normalize(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Divide by the length along ``dim``: what is removed adds nothing to it, as long as it is zero."""
    return ctx.regular(ctx.labels(call.input), "scaling to unit length needs full rows")


@dataclass(frozen=True, eq=False)
class _Member:
    """A factor of an operand, over letters."""

    letters: str
    atoms: Atoms


def contract(ctx: RuleContext, call: Call, operands: Sequence[Any], terms: Sequence[str], result: str) -> ChannelLabels:
    """Tie what meets and return the labels of the result.

    Args:
        ctx: What ties and pins are written to.
        call: The operation.
        operands: Nodes; ``None`` for an operand without channels.
        terms: Letters of every operand.
        result: Letters of the result.
    """
    members: list[_Member] = []
    bare = [""] * len(operands)
    """Letters of every operand without channels."""
    for index, (operand, term) in enumerate(zip(operands, terms, strict=True)):
        labels = ctx.labels(operand)
        for factor in labels.factors:
            letters = "".join(term[axis] for axis in factor.axes)
            if any(_spread(ctx, operands, terms, index, letter) for letter in letters):
                ctx.pin(factor.atoms, "one channel is broadcast over many")
            else:
                members.append(_Member(letters, factor.atoms))
        sizes = ctx.shape(operand) if operand is not None else (0,) * len(term)
        covered = {axis for factor in labels.factors for axis in factor.axes}
        bare[index] = "".join(x for axis, x in enumerate(term) if axis not in covered and sizes[axis] != 1)
    factors = [f for group in _connected(members) for f in _meet(ctx, call, group, bare, result)]
    return ctx.regular(ChannelLabels(tuple(factors)), f"{call.title} needs full rows")


def _spread(ctx: RuleContext, operands: Sequence[Any], terms: Sequence[str], index: int, letter: str) -> bool:
    """Tell whether an operand of size 1 along a letter is laid over others."""
    sizes = [
        ctx.shape(operand)[term.index(letter)]
        for operand, term in zip(operands, terms, strict=True)
        if operand is not None and letter in term
    ]
    return ctx.shape(operands[index])[terms[index].index(letter)] == 1 < max(sizes)


def _connected(members: Sequence[_Member]) -> list[list[_Member]]:
    """Put together factors that share letters."""
    groups: list[list[_Member]] = []
    for member in members:
        touching = [g for g in groups if any(set(m.letters) & set(member.letters) for m in g)]
        groups = [g for g in groups if g not in touching] + [[m for g in touching for m in g] + [member]]
    return groups


def _meet(ctx: RuleContext, call: Call, group: Sequence[_Member], bare: Sequence[str], result: str) -> Sequence[Factor]:
    """Tie the factors of one set of letters; return what the result has of them."""
    full = max(group, key=lambda m: len(m.letters))
    channel = full.letters[-1]
    for other in group:
        if other is full:
            continue
        if set(other.letters) == set(full.letters):
            order = [other.letters.index(letter) for letter in full.letters]
            ctx.tie(full.atoms, other.atoms.transpose(order), f"{call.title} multiplies them")
        elif other.letters == channel:
            spread = np.broadcast_to(other.atoms, full.atoms.shape)
            ctx.tie(full.atoms, spread, f"{call.title} multiplies all rows by the same channels")
        else:
            return _pinned(ctx, group, f"{call.title} of different arrangements of channels")
    alone = len(group) == 1 and channel not in result
    if any(channel in letters for letters in bare) or (alone and not any(channel in b for b in bare)):
        return _pinned(ctx, group, f"{call.title} sums over them against something that is fixed")
    if len(full.letters) == 1 or all(letter in result for letter in full.letters):
        if channel not in result:
            return ()
        axes = [result.index(letter) for letter in full.letters]
        order = sorted(range(len(axes)), key=lambda i: axes[i])
        return (Factor(tuple(sorted(axes)), full.atoms.transpose(order)),)
    # Rows must stay rows of equal length, or, where they are added up, be the same channels.
    if channel not in result:
        return _balanced(ctx, full, call)
    rows = full.atoms.reshape(-1, full.atoms.shape[-1])
    ctx.tie(np.broadcast_to(rows[:1], rows.shape), rows, f"{call.title} adds up rows of channels")
    return (Factor((result.index(channel),), rows[0]),)


def _balanced(ctx: RuleContext, full: _Member, call: Call) -> Sequence[Factor]:
    ctx.balance(full.atoms.reshape(-1, full.atoms.shape[-1]), f"{call.title} needs full rows")
    return ()


def _pinned(ctx: RuleContext, group: Sequence[_Member], reason: str) -> Sequence[Factor]:
    for member in group:
        ctx.pin(member.atoms, reason)
    return ()
