"""Splits, slices and picks."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from secateur.compiler.capture import trace
from support.heads import HEAD_CASES, INSIDE, WIDTH, Attention, N
from support.pruning import deps_of, group_of, kept_of, program_of, prune, reasons, use_of


def nodes(name: str, target: str, **options: object) -> list[fx.Node]:
    """Calls of a target in the pruned program."""
    graph = prune(program_of(name), **options)[0].program.graph
    return [n for n in graph.nodes if n.target == target or getattr(n.target, "__name__", "") == target]


@pytest.mark.parametrize(
    "name", ["split_into_unequal_parts", "split_with_a_rest", "tensor_split", "hierarchical_split"]
)
def test_pieces_keep_what_is_kept_of_them(name: str) -> None:
    result, _ = prune(program_of(name), ratio=0.5, criterion="random", seed=1)
    (split,) = (n for n in result.program.graph.nodes if "split" in str(getattr(n.target, "__name__", n.target)))
    sizes, kept = split.args[1], kept_of(result, "stem.weight")
    bounds = {
        "split_into_unequal_parts": [2, 7],
        "split_with_a_rest": [4, 4, 1],
        "tensor_split": [3, 4, 2],
        "hierarchical_split": [4, 4, 4],
    }[name]
    ends = np.cumsum(bounds)
    expected = [sum(e - b <= k < e for k in kept) for e, b in zip(ends, bounds, strict=True)]
    if name == "hierarchical_split":
        assert sizes == expected or sizes == expected[0]
    else:
        assert sizes == expected


def test_a_split_into_halves_that_are_tied_stays_as_written() -> None:
    (chunk,) = nodes("chunk_and_gate", "chunk", ratio=0.5)
    assert chunk.args[1] == 2


def test_bounds_of_slices_are_counted_anew() -> None:
    result, _ = prune(program_of("slice_in_the_middle"), ratio=0.5, criterion="random")
    kept = kept_of(result, "stem.weight")
    (item,) = (n for n in result.program.graph.nodes if getattr(n.target, "__name__", "") == "getitem")
    index = item.args[1]
    assert isinstance(index, tuple)
    assert index[0] == slice(None)
    assert index[1] == slice(sum(k < 2 for k in kept), sum(k < 8 for k in kept))
    assert index[2:] == (slice(1, None), slice(None, -1))


@pytest.mark.parametrize(
    "name", ["slice_with_a_step", "index_list", "index_buffer", "indexed_by_buffer", "rolled_without_sum"]
)
def test_picks_in_another_order_become_gathers(name: str) -> None:
    assert nodes(name, "index_select", ratio=0.5, criterion="random", seed=1)
    assert not deps_of(name).ties


def test_a_flip_needs_no_rewriting() -> None:
    assert nodes("flipped", "flip", ratio=0.5)
    assert not nodes("flipped", "index_select", ratio=0.5)


def test_a_channel_picked_by_its_index_stays_and_is_found_again() -> None:
    deps = deps_of("one_channel_picked")
    assert "a channel is picked by its index" in reasons(deps, "stem")
    result, _ = prune(program_of("one_channel_picked"), ratio=0.8, criterion="random", seed=4)
    kept = kept_of(result, "stem.weight")
    (item,) = (n for n in result.program.graph.nodes if getattr(n.target, "__name__", "") == "getitem")
    assert isinstance(item.args[1], tuple)
    assert item.args[1][1] == kept.index(4)


def test_channels_nobody_picks_may_all_go() -> None:
    result, _ = prune(program_of("index_list"), ratio=0.5, criterion="l2")
    assert group_of(deps_of("index_list"), "stem").prunable == 9
    assert result.changed


def test_a_batch_shuffle_is_understood() -> None:
    deps = deps_of("shuffle_by_the_batch")
    stem = use_of(deps, "stem.weight").atoms
    assert np.array_equal(use_of(deps, "a.weight", 1).atoms, stem[1::2])
    assert np.array_equal(use_of(deps, "head.weight", 1).atoms[:4], stem[::2])


class TurnedInside(Attention):
    """Picks among the channels of every head."""

    def split(self, x: Tensor) -> Any:
        q, k, v = super().split(x)
        return q.roll(1, -1) + q[..., [4, 3, 2, 1, 0]], k.roll(1, -1), v


class TurnedHeads(Attention):
    """Picks among heads: queries meet keys of others."""

    def split(self, x: Tensor) -> Any:
        q, k, v = super().split(x)
        return q, k.roll(2, 1), v.roll(2, 1)


@pytest.mark.parametrize("cells", ["shrink", "drop"])
@pytest.mark.parametrize("module", [TurnedInside, TurnedHeads])
def test_picks_among_rows_of_channels(module: type[Attention], cells: str) -> None:
    for seed in range(3):  # the first head goes, or stays
        result, _ = prune(
            trace(module(), torch.zeros(2, N, WIDTH)), ratio=0.5, cells=cells, criterion="random", seed=seed
        )
        if cells == "drop":
            assert result.program.attribute("qkv.weight").shape[0] == 2 * 3 * INSIDE


def test_rows_are_picked_by_the_index_that_was_given_where_all_of_them_stay() -> None:
    """The columns of the table go, and its rows do not."""
    result, _ = prune(HEAD_CASES["Windows"].program(), ratio=0.5, cells="drop")
    assert result.program.attribute("table").shape == (11, 2)
    assert "index" in dict(result.program.tensors())
    assert not [name for name, _ in result.program.tensors() if "gather" in name]
