"""Chains of moves: which are one gather, and what happens to those that are not."""

import numpy as np
import pytest
import torch

from secateur.compiler.capture import trace
from secateur.compiler.rules import RULES
from secateur.compiler.rules.movement import MOVES, run_move
from support.pruning import deps_of, program_of, prune, use_of


@pytest.mark.parametrize(
    ("name", "gathers"),
    [
        ("shuffle_by_views", 1),
        ("shuffle_unit", 1),
        ("shuffle_of_shuffle", 2),
        ("half_of_a_shuffle", 1),
        ("residual", 0),
    ],
)
def test_chains_end_in_gathers(name: str, gathers: int) -> None:
    assert len([g for g in deps_of(name).gathers.values() if g.path]) == gathers


def test_a_gather_knows_the_permutation() -> None:
    (gather,) = deps_of("shuffle_by_views").gathers.values()
    assert gather.axis == 1
    assert np.array_equal(gather.positions, np.arange(12).reshape(3, 4).T.ravel())
    assert [step.name for step in gather.path] == ["view", "transpose", "contiguous"]


def test_half_of_a_shuffle_is_every_second_row() -> None:
    (gather,) = deps_of("half_of_a_shuffle").gathers.values()
    assert np.array_equal(gather.positions, np.arange(6, 12))


def test_moves_that_end_in_space_tie_nothing_they_need_not() -> None:
    deps = deps_of("space_to_depth_by_slices")
    columns = use_of(deps, "head.weight", 1).atoms
    assert np.array_equal(columns, np.tile(use_of(deps, "stem.weight").atoms, 4))


def test_what_moves_is_a_rule() -> None:
    assert set(RULES) >= MOVES


def test_a_move_runs_on_any_tensor_of_its_shape() -> None:
    program = program_of("shuffle_of_shuffle")
    shape = (2, 12, 8, 8)
    value = torch.arange(2 * 12 * 64).reshape(shape)
    (reshape_as,) = (n for n in program.graph.nodes if n.target == "reshape_as")
    assert run_move(program, reshape_as, value.flatten(1)).shape == shape


def test_second_prunes_number_their_gathers_on() -> None:
    first, _ = prune(program_of("shuffle_unit"), ratio=0.3, criterion="random")
    again = trace(first.program.module, torch.zeros(2, 3, 8, 8))
    second, _ = prune(again, ratio=0.3, criterion="random", seed=2)
    buffers = [name for name in second.program.module.state_dict() if name.startswith("gather")]
    assert len(buffers) == len(set(buffers)) >= 1
