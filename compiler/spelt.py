"""Functions of torch that are others put together: spelt out when a model is captured, so that they need no rules.

    var_mean(x, d)              ->  x.var(d), x.mean(d)
    addmm(c, a, b)              ->  beta c + alpha (a @ b)
    hstack(xs)                  ->  cat(xs, 1)
    tensordot(a, b, ([1], [0])) ->  einsum("ab,bc->ac", a, b)

A row per function: what calls it is replaced by what its spelling does with the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from string import ascii_letters
from typing import Any, Final

import torch

Dims = int | Sequence[int] | None


def _var_mean(input: Any, dim: Dims = None, *args: Any, keepdim: bool = False, **kwargs: Any) -> Any:
    return input.var(dim, *args, keepdim=keepdim, **kwargs), _mean(input, dim, keepdim)


def _std_mean(input: Any, dim: Dims = None, *args: Any, keepdim: bool = False, **kwargs: Any) -> Any:
    return input.std(dim, *args, keepdim=keepdim, **kwargs), _mean(input, dim, keepdim)


def _mean(input: Any, dim: Dims, keepdim: bool) -> Any:
    return input.mean() if dim is None and not keepdim else input.mean(dim, keepdim=keepdim)


def _add_product(input: Any, left: Any, right: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    product = left @ right
    product = product if alpha == 1 else alpha * product
    return product + (input if beta == 1 else beta * input)


def _hstack(tensors: Sequence[Any]) -> Any:
    return torch.cat(tuple(tensors), 0 if tensors[0].dim() == 1 else 1)


def _vstack(tensors: Sequence[Any]) -> Any:
    flat = tensors[0].dim() == 1
    return torch.cat(tuple(x.unsqueeze(0) for x in tensors) if flat else tuple(tensors), 0)


def _tensordot(a: Any, b: Any, dims: int | Sequence[Sequence[int]] = 2) -> Any:
    ranks = a.dim(), b.dim()
    if isinstance(dims, int):
        dims = [list(range(ranks[0] - dims, ranks[0])), list(range(dims))]
    left = list(ascii_letters[: ranks[0]])
    right = list(ascii_letters[ranks[0] : ranks[0] + ranks[1]])
    for i, j in zip(dims[0], dims[1], strict=True):
        right[j % ranks[1]] = left[i % ranks[0]]
    result = [x for x in left if x not in right] + [x for x in right if x not in left]
    return torch.einsum(f"{''.join(left)},{''.join(right)}->{''.join(result)}", a, b)


SPELT: Final[dict[Any, Callable[..., Any]]] = {
    torch.var_mean: _var_mean,
    torch.std_mean: _std_mean,
    torch.addmm: _add_product,
    torch.baddbmm: _add_product,
    torch.hstack: _hstack,
    torch.vstack: _vstack,
    torch.row_stack: _vstack,
    torch.tensordot: _tensordot,
}
"""Function -> its spelling."""


def explicit(equation: str, ranks: Sequence[int]) -> str:
    """Return an equation of einsum with letters for its dots, and with its result.

    Args:
        equation: As given: ``"...c,cd"``.
        ranks: Numbers of axes of the operands.

    Returns:
        ``"ABc,cd->ABd"``. Dots are letters that the equation has not; without a result it is what occurs once.
    """
    given, arrow, result = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    free = [x for x in reversed(ascii_letters) if x not in equation]
    counts = [
        rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)
    ]
    dots = "".join(free[: max(counts, default=0)])
    if not arrow:
        letters = "".join(terms).replace("...", "")
        result = "..." + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    full = [term.replace("...", dots[len(dots) - count :]) for term, count in zip(terms, counts, strict=True)]
    return f"{','.join(full)}->{result.replace('...', dots)}"
