"""Convolutions: who produces, who consumes, what groups ask for."""

import numpy as np
import pytest
from torch import nn

from secateur.compiler.dependency import Role
from support.pruning import deps_of, group_of, program_of, prune, reasons, same_classes, tie_reasons, use_of, widths


def test_rows_produce_and_columns_consume() -> None:
    deps = deps_of("plain")
    rows, columns = use_of(deps, "stem.weight", 0), use_of(deps, "head.weight", 1)
    assert (rows.role, columns.role) == (Role.PRODUCES, Role.CONSUMES)
    assert use_of(deps, "stem.bias").role is Role.CARRIES
    assert same_classes(deps, rows, columns)
    assert same_classes(deps, rows, use_of(deps, "stem.bias"))


def test_a_transposed_convolution_has_its_axes_exchanged() -> None:
    deps = deps_of("transposed")
    assert use_of(deps, "up.weight", 0).role is Role.CONSUMES
    assert use_of(deps, "up.weight", 1).role is Role.PRODUCES
    assert same_classes(deps, use_of(deps, "up.weight", 1), use_of(deps, "head.weight", 1))


def test_groups_ask_for_equal_counts_on_both_sides() -> None:
    deps = deps_of("grouped_widening")
    balances = {balance.cells.shape: balance for balance in deps.balances if balance.node == "mid"}
    assert set(balances) == {(2, 4), (2, 6)}
    partner = balances[2, 4].partner
    assert partner is not None
    assert np.array_equal(partner, balances[2, 6].cells)
    assert use_of(deps, "mid.weight", 1).atoms.shape == (2, 4)
    assert not deps.ties, "equal counts need no equal positions"


def test_two_numbers_of_groups_are_met_at_once() -> None:
    result, _ = prune(program_of("grouped_then_other_groups"), ratio=0.5, criterion="random")
    module = result.program.module
    for path, groups in (("a", 2), ("b", 3)):
        conv = module.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        assert conv.groups == groups
        assert conv.in_channels % groups == conv.out_channels % groups == 0
        assert conv.out_channels < 12


@pytest.mark.parametrize(("name", "per_group"), [("depthwise", 1), ("depthwise_with_multiplier", 3)])
def test_depthwise_inputs_and_outputs_are_tied(name: str, per_group: int) -> None:
    deps = deps_of(name)
    assert "channels of one group of a depthwise convolution" in tie_reasons(deps)
    assert not deps.balances
    outputs = deps.class_of[use_of(deps, "deep.weight").atoms].reshape(-1, per_group)
    assert (outputs == deps.class_of[use_of(deps, "stem.weight").atoms][:, None]).all()


def test_the_number_of_groups_follows() -> None:
    module = prune(program_of("depthwise"), ratio=0.5)[0].program.module
    deep = module.get_submodule("deep")
    assert isinstance(deep, nn.Conv2d)
    assert (deep.groups, deep.in_channels, deep.out_channels, deep.weight.shape[1]) == (4, 4, 4, 1)


def test_the_number_of_groups_of_a_function_follows() -> None:
    result, _ = prune(program_of("functional_depthwise"), ratio=0.5)
    assert widths(result)["stem"] == 4


def test_input_channels_stay() -> None:
    deps = deps_of("plain")
    pinned = np.concatenate([pin.atoms for pin in deps.pins if "the model's input 'x'" in pin.reason])
    assert np.isin(use_of(deps, "stem.weight", 1).atoms, pinned).all()


def test_a_parameter_used_functionally_is_a_producer() -> None:
    deps = deps_of("functional_weights")
    assert use_of(deps, "stem", 0).role is Role.PRODUCES
    assert use_of(deps, "stem", 0).kind == "conv"
    assert use_of(deps, "head", 1).role is Role.CONSUMES
    assert group_of(deps, "stem").layers == ("stem",)


def test_kernel_axes_of_a_parameter_stay() -> None:
    deps = deps_of("functional_weights")
    kernel = deps.class_of[use_of(deps, "stem", 2).atoms]
    assert any(np.isin(kernel, deps.class_of[p.atoms]).all() for p in deps.pins if "kernel" in p.reason)


def test_standardised_weights_keep_their_columns() -> None:
    deps = deps_of("standardised_weights")
    assert any("mean mixes" in reason for reason in reasons(deps, "stem"))
    assert group_of(deps, "w").prunable == 6


def test_channels_ride_along_on_the_batch_axis() -> None:
    result, _ = prune(program_of("one_filter_for_all_channels"), ratio=0.5)
    assert widths(result)["stem"] == 4
