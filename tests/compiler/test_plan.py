"""Plans: to JSON and back, and one after the other."""

import json

import pytest
import torch

from secateur.compiler.errors import InternalError
from secateur.compiler.plan import Kept, Plan, PrunedGroup, compose
from secateur.compiler.plan import index_tensor as indexed

SHAPES = {"w": (12, 4, 3), "n": (6,)}


def test_json_and_back() -> None:
    plan = Plan({"w": {0: [1, 2], 1: [[0], [1]]}}, {"norm": [0, 2]}, (PrunedGroup("a", ("a", "b"), 4, 2),))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({0: [1, 3, 5, 7, 9, 11]}, {0: [0, 2, 5]}),
        ({0: [1, 3, 5, 7]}, {1: [0, 2]}),
        ({1: [3, 1]}, {0: [2], 1: [1]}),
        ({}, {0: [2]}),
        ({0: [2, 4]}, {}),
        # Grouped: 3 groups of 4 rows, which pick their own columns.
        ({1: [[0, 1, 3], [1, 2, 3], [0, 2, 3]]}, {1: [[0, 2], [1, 2], [0, 1]]}),
        ({0: [0, 1, 4, 5, 8, 9], 1: [[0, 1], [1, 2], [0, 2]]}, {0: [0, 2, 4]}),
        ({0: [0, 1, 4, 5, 8, 9]}, {0: [1, 3, 5], 1: [[0, 1], [1, 2], [0, 2]]}),
        # The later plan drops the second group.
        ({1: [[0, 1], [1, 2], [0, 3]]}, {0: [0, 1, 8, 9]}),
        ({0: [0, 1, 4, 5, 8, 9], 1: [[0, 1], [1, 2], [0, 3]]}, {0: [1, 5], 1: [[1], [0]]}),
        # It leaves one group, and a third plan sees an ordinary convolution.
        ({0: [4, 5, 6, 7], 1: [[1, 2, 3]]}, {0: [0, 2], 1: [0, 2]}),
        ({0: [4, 5, 6, 7]}, {0: [0, 2], 1: [0, 2]}),
    ],
)
def test_one_after_the_other_is_indexing_twice(first: dict[int, Kept], later: dict[int, Kept]) -> None:
    weight = torch.arange(12 * 4 * 3).reshape(SHAPES["w"])
    joined = Plan({"w": first}).then(Plan({"w": later}), SHAPES)
    expected = indexed(indexed(weight, first), later)
    assert torch.equal(indexed(weight, joined.kept["w"]), expected)


def test_what_is_no_original_tensor_is_left_out() -> None:
    joined = Plan({"n": {0: [0, 1]}}).then(Plan({"gather_0": {0: [1]}, "n": {0: [1]}}), SHAPES)
    assert joined.kept == {"n": {0: [1]}}


def test_norms() -> None:
    first = Plan(norms={"layer": [1, 3, 5], "group": [[0, 2], [1, 3]], "only": [0]})
    later = Plan(norms={"layer": [0, 2], "group": [[1], [0]], "new": [4]})
    assert first.then(later, SHAPES).norms == {"layer": [1, 5], "group": [[2], [1]], "only": [0], "new": [4]}
    with pytest.raises(InternalError, match="the normalisation group cannot be joined"):
        first.then(Plan(norms={"group": [[0]]}), SHAPES)


def test_norms_whose_groups_went() -> None:
    first = Plan(norms={"group": [[0, 2], [], [1, 3], []]})
    later = Plan(norms={"group": [[], [1]]})
    assert first.then(later, SHAPES).norms == {"group": [[], [], [3], []]}
    with pytest.raises(InternalError, match="the normalisation group cannot be joined"):
        first.then(Plan(norms={"group": [[1], [0], [1]]}), SHAPES)


def test_groups_keep_their_original_widths() -> None:
    first = Plan(groups=(PrunedGroup("a", ("a",), 8, 6), PrunedGroup("b", ("b",), 4, 4)))
    later = Plan(groups=(PrunedGroup("a", ("a",), 6, 3), PrunedGroup("c", ("c",), 2, 1)))
    assert first.then(later, SHAPES).groups == (
        PrunedGroup("a", ("a",), 8, 3),
        PrunedGroup("b", ("b",), 4, 4),
        PrunedGroup("c", ("c",), 2, 1),
    )


def test_groups_that_were_counted_otherwise() -> None:
    """Whole heads, and what they are coupled with, before and after channels of q and k, and of v."""
    heads = Plan(groups=(PrunedGroup("bias", ("bias", "qkv"), 64, 32),))
    channels = Plan(groups=(PrunedGroup("bias", ("bias",), 2, 2), PrunedGroup("qkv", ("qkv",), 64, 48)))
    assert heads.then(channels, SHAPES).groups == (PrunedGroup("bias", ("bias", "qkv"), 64, 24),)
    channels = Plan(groups=(PrunedGroup("a", ("a",), 24, 12), PrunedGroup("b", ("b",), 36, 24)))
    heads = Plan(groups=(PrunedGroup("a", ("a", "b"), 12, 6),))
    assert [g.after for g in channels.then(heads, SHAPES).groups] == [6, 12]


def test_plans_are_composed_in_order_and_steps_without_one_left_out() -> None:
    first, second, third = (Plan({"w": {0: kept}}) for kept in ([0, 2, 4, 6, 8], [1, 2, 4], [0, 2]))
    assert compose([None, first, second, None, third], SHAPES).kept["w"] == {0: [2, 8]}
    assert compose([None], SHAPES) == Plan()
