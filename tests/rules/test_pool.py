"""Pools, reductions, pixel shuffles."""

import numpy as np
import pytest

from support.pruning import deps_of, group_of, labels_at, plan_of, program_of, prune, reasons, use_of, widths


def test_pools_change_nothing() -> None:
    deps = deps_of("residual_between_pools")
    assert not deps.balances
    assert group_of(deps, "stem").layers == ("stem", "body")


@pytest.mark.parametrize("name", ["mean_over_channels", "norm_by_hand"])
def test_figures_of_channels_are_of_those_that_are_kept(name: str) -> None:
    result, _ = prune(program_of(name), ratio=0.5)
    assert widths(result)["stem"] == 4
    assert set(map(len, plan_of(result).norms.values())) == {4}


def test_the_place_of_the_largest_channel_pins_them_all() -> None:
    found = reasons(deps_of("convolutional_block_attention"), "stem")
    assert any("max mixes the channels along this axis" in reason for reason in found)


def test_reducing_rows_ties_columns() -> None:
    deps = deps_of("maxout")
    pairs = deps.class_of[use_of(deps, "stem.weight").atoms].reshape(6, 2)
    assert (pairs[:, 0] == pairs[:, 1]).all()
    assert widths(prune(program_of("maxout"), ratio=0.5)[0])["stem"] == 3


def test_whole_rows_may_go() -> None:
    result, _ = prune(program_of("group_means"), ratio=0.5)
    assert result.program.module.get_parameter("head.weight").shape[1] == 2


def test_reduced_axes_are_renumbered() -> None:
    (factor,) = labels_at("tokens", "mean").factors
    assert factor.axes == (1,)


def test_pixel_shuffle_ties_the_channels_of_one_output() -> None:
    deps = deps_of("pixel_shuffle")
    stem = deps.class_of[use_of(deps, "stem.weight").atoms].reshape(2, 4)
    assert (stem == stem[:, :1]).all()
    assert stem[0, 0] != stem[1, 0]


def test_pixel_unshuffle_repeats_channels() -> None:
    deps = deps_of("pixel_unshuffle")
    assert np.array_equal(use_of(deps, "head.weight", 1).atoms, np.repeat(use_of(deps, "stem.weight").atoms, 4))


def test_pruned_pixel_shuffle() -> None:
    assert widths(prune(program_of("pixel_shuffle"), ratio=0.5)[0]) == {"stem": 1, "head": 4}
