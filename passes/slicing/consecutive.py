"""Orders in which sets stand together: the consecutive-ones property, by PQ-trees.

A PQ-tree stands for all orders of its leaves in which every set taken in so far is consecutive: the children of a P
node may be permuted at will, those of a Q node only reversed. Taking in a set S marks every node as empty, full or
partial and rearranges the smallest subtree that holds S, or finds that no order is left:

    partial P    E | p | F        ->   Q [P(E), p's children from empty to full, P(F)]
    root P       E, p, F, q       ->   P [E..., Q [p's children, P(F), q's reversed]]
    Q            e.. p f..f q e.. ->   the same, with the children of p and q in their place

Booth and Lueker, Testing for the consecutive ones property, J. Comput. Syst. Sci. 13, 1976. Theirs takes linear time;
this one walks the whole tree for each set, and trees here have as many leaves as there are kinds of channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class P:
    """Children in any order."""

    children: tuple[Tree, ...]


@dataclass(frozen=True)
class Q:
    """Three children or more, in this order or its reverse."""

    children: tuple[Tree, ...]


Tree: TypeAlias = P | Q | int


class _NoOrderError(Exception):
    pass


def tree_of(leaves: Sequence[int]) -> Tree:
    """Return the tree of all orders."""
    return _p(leaves)


def take_in(tree: Tree, wanted: frozenset[int]) -> Tree | None:
    """Return the tree of those orders in which a set is consecutive; ``None`` if there is none."""
    if not wanted & set(leaves(tree)):
        return tree
    try:
        return _root(tree, wanted)
    except _NoOrderError:
        return None


def leaves(tree: Tree) -> list[int]:
    """Return the leaves in one of the tree's orders: the one written down."""
    if isinstance(tree, int):
        return [tree]
    return [leaf for child in tree.children for leaf in leaves(child)]


def consecutive_order(elements: Sequence[int], wanted: Iterable[frozenset[int]]) -> list[int]:
    """Return an order in which sets are consecutive: one after the other is taken in, if those before allow it."""
    tree = tree_of(elements)
    for one in wanted:
        tree = take_in(tree, one) or tree
    return leaves(tree)


def _p(children: Sequence[Tree]) -> Tree:
    return children[0] if len(children) == 1 else P(tuple(children))


def _q(children: Sequence[Tree]) -> Tree:
    return Q(tuple(children)) if len(children) > 2 else _p(children)


def _is(tree: Tree, wanted: frozenset[int]) -> str:
    inside = {leaf in wanted for leaf in leaves(tree)}
    return "partial" if len(inside) == 2 else "full" if inside == {True} else "empty"


def _sorted(node: P | Q, wanted: frozenset[int]) -> dict[str, list[Tree]]:
    found: dict[str, list[Tree]] = {"empty": [], "partial": [], "full": []}
    for child in node.children:
        found[_is(child, wanted)].append(child)
    return found


def _one(children: Sequence[Tree]) -> list[Tree]:
    return [_p(children)] if children else []


def _root(tree: Tree, wanted: frozenset[int]) -> Tree:
    """Rearrange a tree that holds the whole set."""
    if isinstance(tree, int) or _is(tree, wanted) == "full":
        return tree
    parts = _sorted(tree, wanted)
    if len(parts["partial"]) == 1 and not parts["full"]:  # a child holds it all
        inside = parts["partial"][0]
        made = tuple(_root(c, wanted) if c is inside else c for c in tree.children)
        return P(made) if isinstance(tree, P) else Q(made)
    if isinstance(tree, P):
        if len(parts["partial"]) > 2:
            raise _NoOrderError
        left = _halves(parts["partial"][0], wanted) if parts["partial"] else []
        right = _halves(parts["partial"][1], wanted)[::-1] if len(parts["partial"]) == 2 else []
        middle = _q([*left, *_one(parts["full"]), *map(_reversed, right)])
        return _p([*parts["empty"], middle])
    kinds = [_is(child, wanted) for child in tree.children]
    occupied = [i for i, kind in enumerate(kinds) if kind != "empty"]
    first, last = occupied[0], occupied[-1]
    if any(k != "full" for k in kinds[first + 1 : last]):
        raise _NoOrderError
    made_q: list[Tree] = []
    for i, child in enumerate(tree.children):
        if kinds[i] != "partial":
            made_q.append(child)
        elif i == first:
            made_q += _halves(child, wanted)
        else:
            made_q += map(_reversed, _halves(child, wanted)[::-1])
    return Q(tuple(made_q))


def _halves(tree: Tree, wanted: frozenset[int]) -> list[Tree]:
    """Return a partial tree as the children of a Q node, the empty ones first, the full ones last."""
    assert not isinstance(tree, int)
    parts = _sorted(tree, wanted)
    if len(parts["partial"]) > 1:
        raise _NoOrderError
    between = _halves(parts["partial"][0], wanted) if parts["partial"] else []
    if isinstance(tree, P):
        return [*_one(parts["empty"]), *between, *_one(parts["full"])]
    children = list(tree.children)
    if _is(children[0], wanted) == "full" or _is(children[-1], wanted) == "empty":
        children = [_reversed(child) for child in children[::-1]]
    kinds = [_is(child, wanted) for child in children]
    if kinds != sorted(kinds, key=["empty", "partial", "full"].index):
        raise _NoOrderError
    made: list[Tree] = []
    for child, kind in zip(children, kinds, strict=True):
        made += _halves(child, wanted) if kind == "partial" else [child]
    return made


def _reversed(tree: Tree) -> Tree:
    if isinstance(tree, int):
        return tree
    made = tuple(_reversed(child) for child in tree.children[::-1])
    return P(made) if isinstance(tree, P) else Q(made)
