"""Blocks and cells: what is chosen together."""

from collections.abc import Sequence

import numpy as np
import pytest

from secateur.compiler.dependency import Balance
from secateur.compiler.grouping import _cells
from support.pruning import deps_of, group_of


def cells_of(count: int, *balances: Sequence[Sequence[int]]) -> list[int]:
    made = [Balance(np.array(rows), "n", "r") for rows in balances]
    return _cells(np.arange(count), count, made)[0].tolist()


def test_a_balance_cuts_classes_into_its_rows() -> None:
    assert cells_of(5, [[0, 1], [2, 3]]) == [0, 0, 1, 1, -1] or cells_of(5, [[0, 1], [2, 3]]) == [1, 1, 0, 0, -1]


def test_two_balances_intersect() -> None:
    cells = cells_of(6, [[0, 1, 2], [3, 4, 5]], [[0, 1], [2, 3], [4, 5]])
    assert len(set(cells)) == 4
    assert cells[0] == cells[1]
    assert cells[4] == cells[5]


def test_classes_that_stand_in_several_rows_are_told_apart() -> None:
    """Rows 0123, 4501, 2345 of tied halves: 0 and 1 share the rows 0 and 1, 2 and 3 the rows 0 and 2."""
    cells = cells_of(6, [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]])
    assert cells[0] == cells[1] != cells[2] == cells[3] != cells[4] == cells[5] != cells[0]


def test_how_often_a_class_stands_in_a_row_counts() -> None:
    cells = cells_of(3, [[0, 0, 1], [1, 2, 2]])
    assert len(set(cells)) == 3


def test_rows_of_one_class_each_are_free() -> None:
    assert cells_of(2, [[0, 0], [1, 1]]) == [-1, -1]


@pytest.mark.parametrize(
    ("name", "layer", "levels", "sizes"),
    [
        ("plain", "stem", 8, [8]),
        ("grouped_then_other_groups", "a", 2, [4, 2, 2, 4]),
        ("group_norm", "stem", 4, [4, 4, 4]),
        ("same_twice_into_groups", "a", 6, [6]),
    ],
)
def test_levels_are_the_common_divisor_of_the_cells(name: str, layer: str, levels: int, sizes: list[int]) -> None:
    blocks = group_of(deps_of(name), layer).blocks
    block = next(b for b in blocks if b.levels == levels)
    assert sorted(len(c) for c in block.cells) == sorted(sizes)


def test_groups_come_in_the_order_of_their_first_layer() -> None:
    assert [g.name for g in deps_of("dense_block").groups if g.layers] == ["stem", "a", "b", "head"]


def test_parts_of_a_split_are_chosen_by_one_block() -> None:
    (block,) = group_of(deps_of("split_into_unequal_parts"), "stem").blocks
    assert len(block.classes) == 9


def test_channels_that_differ_in_their_producers_are_separate_blocks() -> None:
    blocks = group_of(deps_of("cat_plus"), "add").blocks
    assert [len(b.classes) for b in blocks] == [8, 6]


def test_a_pinned_group_says_why_and_where() -> None:
    (pin,) = group_of(deps_of("plain"), "head").pins
    assert (pin.reason, pin.node) == ("the model's output", "output")


def test_channels_that_no_layer_gives_stay_in_one_group_per_tensor() -> None:
    deps = deps_of("coordinates_appended")
    found = {group.name: (group.width, group.prunable) for group in deps.groups if not group.layers}
    assert found == {"stem.weight": (3, 0), "grid": (4, 0)} or found.keys() >= {"stem.weight", "grid"}
    assert all(prunable == 0 for _, prunable in found.values())
