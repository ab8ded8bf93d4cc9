"""What is combined position by position is tied; what is broadcast or fixed pins."""

import numpy as np
import pytest

from support.pruning import deps_of, group_of, program_of, prune, reasons, same_classes, tie_reasons, use_of


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("residual", ("stem", "body")),
        ("pre_activation", ("stem", "a.5")),
        ("squeeze_excitation", ("stem", "excite")),
        ("squeeze_excitation_by_linear", ("stem", "b")),
        ("where_larger", ("stem", "a")),
        ("layer_scale", ("stem", "body")),
        ("radix_attention", ("stem", "attend")),
    ],
)
def test_aligned_layers_form_one_group(name: str, layers: tuple[str, ...]) -> None:
    assert group_of(deps_of(name), layers[0]).layers == layers


def test_the_reason_names_the_operation() -> None:
    assert "add of aligned channels" in tie_reasons(deps_of("residual"))


def test_a_square_ties_nothing() -> None:
    assert not deps_of("squared").ties


def test_parameters_are_tied_along_their_channel_axis() -> None:
    deps = deps_of("layer_scale")
    assert same_classes(deps, use_of(deps, "stem.weight"), use_of(deps, "scale", 0))
    deps = deps_of("positions_added_per_channel")
    assert same_classes(deps, use_of(deps, "stem.weight"), use_of(deps, "grid", 1))


def test_a_single_channel_that_is_broadcast_stays() -> None:
    deps = deps_of("spatial_gate")
    assert any("one channel is broadcast over many" in reason for reason in reasons(deps, "gate"))
    assert group_of(deps, "stem").prunable == 8


def test_a_fixed_operand_pins_the_other() -> None:
    assert "combined by add with the model's input 'x'" in reasons(deps_of("added_to_the_input"), "stem")


def test_softmax_over_rows_keeps_the_columns_free() -> None:
    deps = deps_of("radix_attention")
    attend = deps.class_of[use_of(deps, "attend.weight").atoms].reshape(2, 6)
    assert (attend[0] == attend[1]).all()
    assert len(np.unique(attend)) == 6


def test_softmax_over_channels_says_why() -> None:
    assert any("softmax mixes the channels" in reason for reason in reasons(deps_of("softmax_over_channels"), "stem"))


def test_the_halves_of_a_gated_linear_unit_are_tied() -> None:
    deps = deps_of("gated_linear_unit")
    halves = deps.class_of[use_of(deps, "stem.weight").atoms].reshape(2, 6)
    assert (halves[0] == halves[1]).all()


def test_a_scale_that_was_computed_from_the_width_keeps_its_value() -> None:
    program = prune(program_of("scale_by_width"), ratio=0.5)[0].program
    numbers = [a for node in program.graph.nodes for a in node.args if isinstance(a, float)]
    assert pytest.approx(sorted(numbers)) == sorted([8**-0.5, 8**0.5])


def test_channels_changed_through_a_view_stay() -> None:
    assert "changed in place through a view" in reasons(deps_of("changed_through_a_view"), "a")
    assert "changed in place through a view" in reasons(deps_of("view_of_what_is_changed"), "stem")
    assert not any("in place" in pin.reason for pin in deps_of("pieces_changed_in_place").pins)
