"""What stands side by side, and channels made of padding."""

import numpy as np
import pytest

from support.pruning import deps_of, group_of, kept_of, labels_at, program_of, prune, use_of, widths


def test_a_cat_couples_nothing() -> None:
    deps = deps_of("cat_of_cat")
    assert not deps.ties
    joined = np.concatenate([use_of(deps, f"{layer}.weight").atoms for layer in "abc"])
    assert np.array_equal(use_of(deps, "head.weight", 1).atoms, joined)


def test_the_same_tensor_twice_is_the_same_channels_twice() -> None:
    deps = deps_of("cat_of_the_same_twice")
    a = use_of(deps, "a.weight").atoms
    assert np.array_equal(use_of(deps, "head.weight", 1).atoms, np.concatenate([a, a]))
    result, _ = prune(program_of("cat_of_the_same_twice"), ratio=0.5)
    kept = kept_of(result, "a.weight")
    assert kept_of(result, "head.weight", 1) == [*kept, *(i + 6 for i in kept)]


@pytest.mark.parametrize("name", ["cat_along_space", "cat_along_the_batch", "sum_of_stack", "unbind_of_stack"])
def test_other_axes_are_tied(name: str) -> None:
    assert group_of(deps_of(name), "a").layers == ("a", "b")


def test_a_class_token_is_tied_to_the_trunk() -> None:
    deps = deps_of("class_token")
    classes = deps.class_of[use_of(deps, "stem.weight").atoms]
    assert np.array_equal(deps.class_of[use_of(deps, "token", 2).atoms], classes)
    assert np.array_equal(deps.class_of[use_of(deps, "place", 2).atoms], classes)


def test_padded_channels_are_channels() -> None:
    result, _ = prune(program_of("zero_padded_shortcut"), ratio=0.5, criterion="random")
    (pad,) = (n for n in result.program.graph.nodes if getattr(n.target, "__name__", "") == "pad")
    front, back = pad.args[1][-2:]
    kept = kept_of(result, "body.weight", 0)
    assert (front, back) == (sum(k < 2 for k in kept), sum(k >= 6 for k in kept))


def test_padding_of_space_is_left_alone() -> None:
    deps = deps_of("padded_in_space")
    assert not deps.arguments
    assert not deps.ties


def test_rows_of_a_join_along_the_row_axis_keep_equal_counts() -> None:
    assert labels_at("cat_of_group_views", "cat").factors[0].atoms.shape == (4, 4)
    result, _ = prune(program_of("cat_of_group_views"), ratio=0.5, criterion="random")
    assert widths(result) == {"a": 8, "head": 4} or set(widths(result).values()) == {4}


def test_stacks_interleave() -> None:
    deps = deps_of("stack_interleaves")
    a, b = use_of(deps, "a.weight").atoms, use_of(deps, "b.weight").atoms
    columns = deps.class_of[use_of(deps, "head.weight", 1).atoms].reshape(6, 2)
    assert set(columns[:, 0]) == set(deps.class_of[a])
    assert set(columns[:, 1]) == set(deps.class_of[b])
