"""What products of activations make of constant channels: where one factor is 0, so is the product.

    matmul      [..., i, k] x [..., k, j] -> [..., i, j]
    attention   q [..., i, k], k [..., j, k] -> scores [..., i, j]; scores x v [..., j, d] -> [..., i, d]
    normalize   x [..., k] x x [..., k] -> [...], by whose root x is divided

Axes are letters, as in einsum. A product of elements is 0 if one of them is; the result is 0 at a position if all
products are that are added up there. A channel that is summed over adds nothing where all of its products are 0: then
it may go, though what stands there in the other operand is not constant. That softmax comes between the two products
of attention changes nothing: what is 0 in v is weighed and added up to 0, whatever the weights, mask and dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import fx

from .constant_values import KnownValues, Value, rule
from .ops import Call
from .rules.product import ATTENTION, einsum_terms, matmul_terms
from .shapes import concrete, is_tensor, shape_of

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Product:
    """A product of tensors over letters, and where it is 0 whatever the input is."""

    operands: tuple[fx.Node | None, ...]
    """``None`` for the scores of attention, which are no tensor of the graph."""
    terms: tuple[str, ...]
    """Letters of every operand."""
    result: str
    letters: str
    """All letters."""
    zeros: Bools
    """Over ``letters``, with size 1 along those that it does not vary along."""

    def vanishes(self, letters: str) -> Bools:
        """Tell at which positions of some letters every product is 0."""
        others = tuple(i for i, x in enumerate(self.letters) if x not in letters)
        kept = [x for x in self.letters if x in letters]
        return np.transpose(self.zeros.all(axis=others), [kept.index(x) for x in letters])


@rule("matmul")
def _matmul(at: KnownValues, call: Call) -> Value | None:
    ranks = [len(shape_of(x)) for x in (call.input, call["other"])]
    return _sum(at, call, (call.input, call["other"]), *matmul_terms(ranks)) if min(ranks) > 1 else None


@rule("einsum")
def _einsum(at: KnownValues, call: Call) -> Value | None:
    operands = call["operands"] if isinstance(call["operands"], (tuple, list)) else (call["operands"],)
    found = einsum_terms(call["equation"], operands)
    return _sum(at, call, operands, *found) if found is not None else None


@rule("attention")
def _attention(at: KnownValues, call: Call) -> Value | None:
    q, k, v = call["query"], call["key"], call["value"]
    if len({len(shape_of(x)) for x in (q, k, v)}) > 1 or call.params.get("enable_gqa"):
        return None
    batch = "abcdefgh"[: len(shape_of(q)) - 2]
    (scores, ij), (values, out) = ATTENTION
    _sum(at, call, (q, k), [batch + term for term in scores], batch + ij)
    return _sum(at, call, (None, v), [batch + term for term in values], batch + out)


@rule("normalize")
def _normalize(at: KnownValues, call: Call) -> Value | None:
    """Squares are added up along ``dim``: what is 0 adds nothing to the length, and stays 0."""
    letters = "abcdefgh"[: len(shape_of(call.input))]
    dims: Any = concrete(call["dim"])
    over = {letters[d] for d in (dims if isinstance(dims, (tuple, list)) else [dims])}
    _sum(at, call, (call.input, call.input), [letters] * 2, "".join(x for x in letters if x not in over))
    value = at.input(call)
    return None if value is None else np.where(value == 0, 0.0, np.nan)


def _sum(at: KnownValues, call: Call, operands: Sequence[Any], terms: Sequence[str], result: str) -> Value | None:
    """Record a product; return 0 where its result is 0, NaN elsewhere."""
    letters = "".join(dict.fromkeys("".join(terms)))
    zeros: Bools = np.zeros((1,) * len(letters), dtype=np.bool_)
    for operand, term in zip(operands, terms, strict=True):
        value = at.of(operand) if is_tensor(operand) else None
        if value is not None:
            order = sorted(range(len(term)), key=lambda axis: letters.index(term[axis]))
            spread = [value.shape[term.index(x)] if x in term else 1 for x in letters]
            zeros = zeros | np.transpose(value == 0, order).reshape(spread)
    product = Product(tuple(x if is_tensor(x) else None for x in operands), tuple(terms), result, letters, zeros)
    at.products.setdefault(call.node, []).append(product)
    return np.where(product.vanishes(result), 0.0, np.nan)
