"""Products of activations: matmul, einsum, attention, and scaling to unit length.

Axes are letters, as in einsum. Where a letter is summed over, what stands at one position in one operand meets what
stands there in the others, so the channels are tied; where it stays, the result has the operand's channels.

    matmul      [..., i, k] x [..., k, j] -> [..., i, j]
    attention   q [..., i, k], k [..., j, k], v [..., j, d] -> [..., i, d]

Channels of attention heads stand over two letters, (head, channel). Every head keeps as many, each its own; a summed
letter needs the same ones in both operands, head by head. Where whole heads go (:mod:`.cells`), the letter that the
operands share and the result keeps is that of the heads, which are tied from operand to operand and passed on:

    matmul      [h, i, k] x [h, j, k]  -> [h, i, j]        queries, keys, scores
    attention   [h, i, j] x [h, j, d]  -> [h, i, d]        scores, values
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..labels import Atoms, ChannelLabels, Factor, sorted_factor
from ..ops import Call
from ..shapes import concrete, is_tensor, shape_of
from ..spelt import explicit
from .cells import may_be_cells, meet
from .elementwise import lay_over
from .registry import RuleContext, rule


@rule("matmul")
def matmul(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Sum over the last axis of one and the last but one of the other; leading axes lie over each other."""
    left, right = call.input, call["other"]
    ranks = [len(ctx.shape(x)) for x in (left, right)]
    if min(ranks) < 2:
        return ctx.unknown(call, "a product with a vector")
    return contract(ctx, call, [_operand(ctx, x) for x in (left, right)], *matmul_terms(ranks))


def matmul_terms(ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of both operands, which have these ranks, and of the result."""
    batch = "abcdefgh"[: max(ranks) - 2]
    return [batch[len(batch) - (ranks[0] - 2) :] + "ik", batch[len(batch) - (ranks[1] - 2) :] + "kj"], batch + "ij"


ATTENTION: Final = ((("ik", "jk"), "ij"), (("ij", "jd"), "id"))
"""The two products of attention: letters of the operands and of the result, behind those of the leading axes."""


@rule("attention")
def attention(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Softmax over j of q k^T, times v. The mask has no channels; a scale that follows from the width must be given."""
    q, k, v = call["query"], call["key"], call["value"]
    rank = len(ctx.shape(q))
    if len({len(ctx.shape(x)) for x in (q, k, v)}) > 1 or call.params.get("enable_gqa"):
        return ctx.unknown(call, "attention over different numbers of axes")
    batch = "abcdefgh"[: rank - 2]
    if call["scale"] is None:
        ctx.pin_all([ctx.labels(q), ctx.labels(k)], "attention scales by the number of channels")
    (terms, ij), (values, out) = ATTENTION
    found = contract(ctx, call, [_operand(ctx, x) for x in (q, k)], [batch + term for term in terms], batch + ij)
    scores = (_masked(ctx, call, found), (*ctx.shape(q)[:-1], ctx.shape(k)[-2]))
    return contract(ctx, call, [scores, _operand(ctx, v)], [batch + term for term in values], batch + out)


def _masked(ctx: RuleContext, call: Call, scores: ChannelLabels) -> ChannelLabels:
    """Return the labels of the scores with the mask added: none, unless whole heads go."""
    mask = call["attn_mask"]
    if not ctx.whole_cells:
        ctx.pin_all(ctx.env.get(mask) if is_tensor(mask) else None, "a mask of attention")
        return ChannelLabels()
    if not is_tensor(mask):
        return scores
    sizes = (*ctx.shape(call["query"])[:-1], ctx.shape(call["key"])[-2])
    return lay_over(ctx, call, [scores, ctx.labels(mask)], [sizes, ctx.shape(mask)])


@rule("einsum")
def einsum(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Any product with an equation."""
    operands = call["operands"] if isinstance(call["operands"], (tuple, list)) else (call["operands"],)
    found = einsum_terms(call["equation"], operands)
    if found is None:
        return ctx.unknown(call, "a product without an equation, or one that takes a diagonal")
    return contract(ctx, call, [_operand(ctx, x) for x in operands], *found)


def einsum_terms(equation: Any, operands: Sequence[Any]) -> tuple[list[str], str] | None:
    """Return the letters of the operands and of the result; ``None`` if a product is not as simple as that."""
    if not isinstance(equation, str) or not all(map(is_tensor, operands)):
        return None
    given, _, result = explicit(equation, [len(shape_of(x)) for x in operands]).partition("->")
    terms = given.split(",")
    simple = len(terms) == len(operands) and all(len(set(term)) == len(term) for term in terms)
    return (terms, result) if simple else None


@rule("normalize")
def normalize(ctx: RuleContext, call: Call) -> ChannelLabels:
    """Divide by the length along ``dim``: what is removed adds nothing to it, as long as it is zero."""
    norm = concrete(call["p"])
    if not isinstance(norm, int | float) or norm <= 0:
        return ctx.unknown(call, "a length in which zeros count")
    return ctx.regular(ctx.labels(call.input), "scaling to unit length needs full rows")


@dataclass(frozen=True, eq=False)
class _Member:
    """A factor of an operand, over letters."""

    letters: str
    atoms: Atoms


Operand = tuple[ChannelLabels, tuple[int, ...]]
"""Labels and shape."""


def _operand(ctx: RuleContext, node: Any) -> Operand:
    return ctx.labels(node), ctx.shape(node)


def contract(
    ctx: RuleContext, call: Call, operands: Sequence[Operand], terms: Sequence[str], result: str
) -> ChannelLabels:
    """Tie what meets and return the labels of the result.

    Args:
        ctx: What ties and pins are written to.
        call: The operation.
        operands: What is multiplied.
        terms: Letters of every operand.
        result: Letters of the result.
    """
    members: list[_Member] = []
    bare = [""] * len(operands)
    """Letters of every operand without channels."""
    for index, ((labels, sizes), term) in enumerate(zip(operands, terms, strict=True)):
        for factor in labels.factors:
            letters = "".join(term[axis] for axis in factor.axes)
            if any(_spread(operands, terms, index, letter) for letter in letters):
                ctx.pin(factor.atoms, "one channel is broadcast over many")
            else:
                members.append(_Member(letters, factor.atoms))
        covered = {axis for factor in labels.factors for axis in factor.axes}
        bare[index] = "".join(x for axis, x in enumerate(term) if axis not in covered and sizes[axis] != 1)
    factors: list[Factor] = []
    if ctx.whole_cells:
        ctx.batches += [m.atoms for m in members if _is_batch(m.letters, terms, result)]
    for group in _connected(members):
        cells, assumed = _cells(ctx, group, terms, bare, result)
        if cells:
            factors += _meet_cells(ctx, call, group, bare, result, cells, assumed=assumed)
        else:
            factors += _meet(ctx, call, group, bare, result)
    return ctx.regular(ChannelLabels(tuple(factors)), f"{call.title} needs full rows")


def _is_batch(letters: str, terms: Sequence[str], result: str) -> bool:
    """Tell whether operands share these letters, and the result keeps them."""
    return all(x in result and sum(x in term for term in terms) > 1 for x in letters)


def _spread(operands: Sequence[Operand], terms: Sequence[str], index: int, letter: str) -> bool:
    """Tell whether an operand of size 1 along a letter is laid over others."""
    sizes = [shape[term.index(letter)] for (_, shape), term in zip(operands, terms, strict=True) if letter in term]
    return operands[index][1][terms[index].index(letter)] == 1 < max(sizes)


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


# Whole cells ----------------------------------------------------------------------------------------------------------


def _cells(
    ctx: RuleContext, group: Sequence[_Member], terms: Sequence[str], bare: Sequence[str], result: str
) -> tuple[str, bool]:
    """Return the letters of whole cells, if there are some, and whether that is only assumed.

    Cells are what operands share and the result keeps; where channels are summed over as well (the heads' outputs,
    projected and added up), the leading letters. What one operand has alone may be cells of a product to come.
    """
    several = [m for m in group if len(m.letters) > 1]
    if not ctx.whole_cells or not several:
        return "", False
    letters = "".join(dict.fromkeys(x for m in several for x in m.letters))
    shared = [x for x in letters if sum(x in term for term in terms) > 1]
    alike = len({frozenset(m.letters) for m in group}) == 1
    cells = [x for x in shared if x in result]
    if not cells and not alike:
        cells = [x for x in shared if x in several[0].letters[:-1]]
    if cells and any(set(m.letters) - set(cells) for m in several):
        return "".join(cells), False
    own = "".join(x for x in several[0].letters[:-1] if x in result)
    meets = not alike or any(m.letters[-1] in b for b in bare for m in several)
    return (own if meets and may_be_cells(ctx) else ""), True


def _meet_cells(
    ctx: RuleContext,
    call: Call,
    group: Sequence[_Member],
    bare: Sequence[str],
    result: str,
    cells: str,
    *,
    assumed: bool,
) -> Sequence[Factor]:
    """Tie the cells of one set of letters; return what the result has of them."""
    free = [x for x in cells if not any(x in letters for letters in bare)]
    if not free:
        return _pinned(ctx, group, f"{call.title} multiplies cells by something that is fixed")
    number = {x: i for i, x in enumerate(sorted({x for m in group for x in m.letters}))}
    factors = [sorted_factor(m.atoms, [number[x] for x in m.letters]) for m in group]
    met = meet(ctx, factors, [number[x] for x in free], f"{call.title} multiplies cell by cell", assumed=assumed)
    if met is None:
        return ()
    names = [next(x for x, i in number.items() if i == axis) for axis in met.axes]
    if not all(x in result for x in names):
        return ()
    return (sorted_factor(met.atoms, [result.index(x) for x in names]),)
