"""Moves that change the shape, and the sizes written in them."""

import numpy as np
import pytest
from torch import fx

from secateur.compiler.program import Program
from support.pruning import deps_of, group_of, kept_of, labels_at, program_of, prune, use_of


def calls(program: Program) -> list[str]:
    """What the graph calls, in order."""
    return [str(getattr(n.target, "__name__", n.target)) for n in program.graph.nodes if n.op.startswith("call")]


def test_a_shuffle_becomes_one_gather_of_what_is_kept() -> None:
    result, _ = prune(program_of("shuffle_by_views"), ratio=0.5, criterion="random")
    called = calls(result.program)
    assert "index_select" in called
    assert not {"view", "transpose"} & set(called)
    assert not deps_of("shuffle_by_views").ties
    assert "gather_0" in result.program.module.state_dict()


def test_a_shuffle_that_is_left_whole_stays_as_written() -> None:
    result, _ = prune(program_of("shuffle_by_views"), layers={"head": 0.0})
    assert not result.changed
    assert {"view", "transpose"} <= set(calls(result.program))


def test_positions_of_a_gather_are_kept_ones() -> None:
    result, _ = prune(program_of("shuffle_by_views"), ratio=0.5, criterion="random", seed=2)
    kept = kept_of(result, "stem.weight")
    shuffled = np.arange(12).reshape(3, 4).T.ravel()
    expected = [kept.index(int(c)) for c in shuffled if int(c) in kept]
    assert result.program.module.state_dict()["gather_0"].tolist() == expected


@pytest.mark.parametrize(
    "name", ["activation_inside_a_shuffle", "activation_after_a_transpose", "sizes_of_a_transpose"]
)
def test_what_reads_the_middle_of_a_chain_asks_for_full_rows(name: str) -> None:
    deps = deps_of(name)
    stem = deps.class_of[use_of(deps, "stem.weight").atoms]
    rows = {(b.cells.shape, b.reason) for b in deps.balances}
    assert rows or len(np.unique(stem)) < len(stem)


def test_a_permuted_factor_keeps_its_axes_rising() -> None:
    factor = labels_at("activation_after_a_transpose", "transpose").factors[0]
    assert factor.axes == (1, 2)
    assert factor.atoms.shape == (4, 3)


def test_literal_sizes_are_rewritten() -> None:
    program = prune(program_of("layer_norm_channels_last"), ratio=0.5)[0].program
    (norm,) = (n for n in program.graph.nodes if getattr(n.target, "__name__", "") == "layer_norm")
    assert norm.args[1] == (4,)


def test_sizes_that_follow_by_themselves_stay_as_written() -> None:
    program = prune(program_of("tokens"), ratio=0.5)[0].program
    (reshape,) = (n for n in program.graph.nodes if n.target == "reshape")
    assert all(isinstance(a, fx.Node) for a in reshape.args), "b, c and h * w are still computed from the input"


def test_the_batch_is_never_written_as_a_number() -> None:
    program = prune(program_of("batch_times_a_literal"), ratio=0.5)[0].program
    first, second = (n for n in program.graph.nodes if n.target == "view")
    assert first.args[1:] == (-1, 1, 8, 8)
    assert isinstance(second.args[1], fx.Node)
    assert second.args[2:] == (6, 8, 8)


def test_channels_folded_into_space_are_not_lost() -> None:
    deps = deps_of("channels_folded_into_space")
    assert np.array_equal(
        np.unique(deps.class_of[labels_at("channels_folded_into_space", "reshape").factors[0].atoms]),
        np.unique(deps.class_of[use_of(deps, "stem.weight").atoms]),
    )


def test_one_channel_that_is_expanded_stays() -> None:
    assert group_of(deps_of("one_channel_expanded"), "stem").prunable == 0


def test_a_repeat_holds_channels_several_times() -> None:
    deps = deps_of("repeated")
    assert np.array_equal(use_of(deps, "head.weight", 1).atoms, np.tile(use_of(deps, "stem.weight").atoms, 3))
