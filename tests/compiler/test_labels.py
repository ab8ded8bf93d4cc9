"""The label algebra, by hand. (tests/test_property.py compares it with torch on random tensors.)"""

import numpy as np
import pytest

from secateur.compiler import labels as algebra
from secateur.compiler.labels import ChannelLabels, Factor, one_axis


def channels(count: int, axis: int = 1) -> ChannelLabels:
    return one_axis(axis, np.arange(count))


def test_a_view_splits_the_channel_axis() -> None:
    found = algebra.reshape(channels(6), (2, 6, 5, 5), (2, 2, 3, 5, 5))
    (factor,) = found.labels.factors
    assert factor.axes == (1, 2)
    assert factor.atoms.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not found.lost.size


def test_flatten_repeats_every_channel_over_its_positions() -> None:
    (factor,) = algebra.reshape(channels(3), (2, 3, 2, 2), (2, 12)).labels.factors
    assert factor.axes == (1,)
    assert factor.atoms.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_merging_with_the_batch_repeats_over_the_batch() -> None:
    (factor,) = algebra.reshape(channels(3), (2, 3, 4), (6, 4)).labels.factors
    assert factor.axes == (0,)
    assert factor.atoms.tolist() == [0, 1, 2, 0, 1, 2]


def test_axes_of_size_one_come_and_go() -> None:
    (factor,) = algebra.reshape(channels(3), (2, 3, 1, 1), (2, 3)).labels.factors
    assert factor.axes == (1,)
    (factor,) = algebra.reshape(channels(3), (2, 3), (1, 2, 3, 1, 1)).labels.factors
    assert factor.axes == (2,)


def test_two_factors_merged_into_one_axis_are_lost() -> None:
    labels = ChannelLabels((Factor((1,), np.arange(3)), Factor((2,), np.arange(3, 5))))
    found = algebra.reshape(labels, (2, 3, 2), (2, 6))
    assert found.labels.factors == ()
    assert sorted(found.lost.tolist()) == [0, 1, 2, 3, 4]


def test_factors_on_separate_axes_move_separately() -> None:
    labels = ChannelLabels((Factor((1,), np.arange(4)), Factor((2,), np.arange(4, 7))))
    found = algebra.reshape(labels, (2, 4, 3), (2, 2, 2, 3)).labels
    assert [f.axes for f in found.factors] == [(1, 2), (3,)]


def test_what_does_not_vary_is_dropped() -> None:
    factor = Factor((1, 2), np.array([[0, 1], [0, 1]]))
    squeezed = algebra.squeeze_constant(factor)
    assert squeezed is not None
    assert squeezed.axes == (2,)
    assert algebra.squeeze_constant(Factor((1,), np.array([7, 7]))) is None


def test_renaming_keeps_axes_rising() -> None:
    labels = ChannelLabels((Factor((1, 2), np.arange(6).reshape(2, 3)),))
    (factor,) = labels.renamed({1: 3, 2: 0}.__getitem__).factors
    assert factor.axes == (0, 3)
    assert factor.atoms.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_taking_picks_along_one_axis() -> None:
    labels = ChannelLabels((Factor((1, 2), np.arange(6).reshape(2, 3)), Factor((3,), np.arange(6, 8))))
    first, second = labels.taken(2, np.array([2, 0])).factors
    assert first.atoms.tolist() == [[2, 0], [5, 3]]
    assert second.atoms.tolist() == [6, 7]


def test_replacing_drops_the_factor_that_was_there() -> None:
    labels = ChannelLabels((Factor((0, 1), np.arange(6).reshape(2, 3)), Factor((2,), np.arange(6, 8))), "x")
    found = labels.replaced(1, np.array([9, 9]))
    assert [f.axes for f in found.factors] == [(2,), (1,)]
    assert found.origin == "x"


@pytest.mark.parametrize("axis", [0, 2])
def test_an_axis_without_labels_has_no_factor(axis: int) -> None:
    assert channels(3).factor_at(axis) is None


def test_a_factor_that_would_be_enormous_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algebra, "LARGEST_FACTOR", 8)
    found = algebra.reshape(channels(3), (2, 3, 2, 2), (2, 12))
    assert found.lost.tolist() == [0, 1, 2]
