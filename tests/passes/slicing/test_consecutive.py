"""Orders in which sets are consecutive, checked against trying all of them."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.passes.slicing.consecutive import P, Q, Tree, consecutive_order, leaves, take_in, tree_of

SETS = st.lists(st.frozensets(st.integers(0, 5), min_size=1), max_size=5)


def is_run(order: tuple[int, ...], wanted: frozenset[int]) -> bool:
    places = [order.index(element) for element in wanted]
    return max(places) - min(places) == len(places) - 1


def orders(tree: Tree) -> set[tuple[int, ...]]:
    """All orders that a tree stands for, by the definition of P and Q."""
    if isinstance(tree, int):
        return {(tree,)}
    arrangements = permutations(tree.children) if isinstance(tree, P) else [tree.children, tree.children[::-1]]
    found: set[tuple[int, ...]] = set()
    for children in arrangements:
        partial: set[tuple[int, ...]] = {()}
        for child in children:
            partial = {before + behind for before in partial for behind in orders(child)}
        found |= partial
    return found


@settings(max_examples=150, deadline=None)
@given(SETS)
def test_the_tree_stands_for_exactly_the_orders_in_which_all_sets_are_consecutive(sets: list[frozenset[int]]) -> None:
    tree: Tree = tree_of(range(6))
    taken: list[frozenset[int]] = []
    for wanted in sets:
        possible = {o for o in permutations(range(6)) if all(is_run(o, s) for s in [*taken, wanted])}
        after = take_in(tree, wanted)
        assert (after is None) == (not possible)
        if after is not None:
            assert orders(after) == possible
            tree, taken = after, [*taken, wanted]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.frozensets(st.integers(0, 39), min_size=1), max_size=12))
def test_an_order_holds_every_element_once_and_the_first_set_together(sets: list[frozenset[int]]) -> None:
    order = consecutive_order(range(40), sets)
    assert sorted(order) == list(range(40))
    assert all(is_run(tuple(order), wanted) for wanted in sets[:2])


def test_two_sets_that_overlap_leave_a_q_node() -> None:
    tree = take_in(take_in(tree_of(range(5)), frozenset({0, 1, 2})) or 0, frozenset({2, 3})) or 0
    assert isinstance(tree, P)
    inner = next(child for child in tree.children if isinstance(child, Q))
    assert leaves(inner) in ([0, 1, 2, 3], [3, 2, 0, 1], [1, 0, 2, 3])


@pytest.mark.parametrize("elements", [[], [7], [7, 3]])
def test_few_elements_keep_their_order(elements: list[int]) -> None:
    assert consecutive_order(elements, []) == elements
