"""Normalisations carry channels, and say over which they normalise."""

import numpy as np
import pytest
from torch import nn

from secateur.compiler.dependency import Role
from support.pruning import deps_of, plan_of, program_of, prune, same_classes, use_of


def test_batch_norm_carries_all_its_tensors() -> None:
    deps = deps_of("batch_norm")
    rows = use_of(deps, "stem.weight")
    for name in ("weight", "bias", "running_mean", "running_var"):
        use = use_of(deps, f"norm.{name}")
        assert use.role is Role.CARRIES
        assert same_classes(deps, rows, use)
    norm = prune(program_of("batch_norm"), ratio=0.5)[0].program.module.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_features == len(norm.weight) == len(norm.get_buffer("running_mean")) == 4


def test_functional_batch_norm_ties_parameters_and_buffers() -> None:
    deps = deps_of("functional_batch_norm")
    for name in ("mean", "scale", "shift"):
        assert same_classes(deps, use_of(deps, "stem.weight"), use_of(deps, name))


@pytest.mark.parametrize(("name", "rows"), [("group_norm", 3), ("functional_group_norm", 4)])
def test_group_norm_asks_for_equal_counts(name: str, rows: int) -> None:
    deps = deps_of(name)
    assert any(b.cells.shape[0] == rows and "group norm" in b.reason for b in deps.balances)
    assert not any("statistics" in tie.reason for tie in deps.ties)


def test_groups_of_convolution_and_norm_are_met_at_once() -> None:
    module = prune(program_of("group_norm_of_groups"), ratio=0.5)[0].program.module
    norm = module.get_submodule("norm")
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels) == (3, 6)


def test_groups_of_one_channel_go_one_by_one() -> None:
    norm = prune(program_of("group_norm_of_singles"), ratio=0.5)[0].program.module.get_submodule("norm")
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels) == (6, 6)


def test_the_plan_names_norms_over_pruned_channels() -> None:
    result, _ = prune(program_of("group_norm"), ratio=0.5)
    (kept,) = plan_of(result).norms.values()
    assert [len(row) for row in kept if isinstance(row, list)] == [2, 2, 2]
    result, _ = prune(program_of("layer_norm_without_weights"), ratio=0.5)
    assert [len(kept) for kept in plan_of(result).norms.values()] == [4]


def test_a_layer_norm_over_several_axes_is_sliced_along_its_channels() -> None:
    norm = prune(program_of("layer_norm_over_everything"), ratio=0.5)[0].program.module.get_submodule("norm")
    assert isinstance(norm, nn.LayerNorm)
    assert norm.normalized_shape == (4, 8, 8)
    assert norm.weight.shape == (4, 8, 8)


def test_a_layer_norm_over_space_is_left_alone() -> None:
    deps = deps_of("layer_norm_over_space")
    assert not deps.norms
    assert not any(use.name.startswith("norm") for use in deps.slices)


def test_only_a_slope_per_channel_is_sliced() -> None:
    deps = deps_of("slopes")
    assert same_classes(deps, use_of(deps, "stem.weight"), use_of(deps, "many.weight"))
    assert not any(use.name == "one.weight" for use in deps.slices)
    many = prune(program_of("slopes"), ratio=0.5)[0].program.module.get_submodule("many")
    assert isinstance(many, nn.PReLU)
    assert many.num_parameters == len(many.weight) == 4


def test_instance_norm_tracks_per_channel() -> None:
    deps = deps_of("instance_norm")
    assert np.array_equal(use_of(deps, "track.running_mean").atoms, use_of(deps, "mid.weight").atoms)
