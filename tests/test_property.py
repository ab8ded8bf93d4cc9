"""Properties that hold for any network and any channels."""

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from secateur.compiler import labels as algebra
from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.errors import BudgetError
from secateur.compiler.labels import ChannelLabels, Factor
from secateur.compiler.shapes import value_of
from secateur.passes.prune.prune import Prune
from support.pruning import prune
from support.random_net import RandomNet, Step, steps

ratios = st.sampled_from([0.2, 0.5, 0.75])
scopes = st.sampled_from(["uniform", "global"])
seeds = st.integers(0, 3)

quick = settings(max_examples=40, derandomize=True, deadline=None)
thorough = settings(max_examples=300, derandomize=True, deadline=None)


def check_network(plan: list[Step], ratio: float, seed: int) -> None:
    program = trace(RandomNet(plan), torch.zeros(2, 3, 6, 6))
    result, _ = prune(program, ratio=ratio, criterion="random", seed=seed)
    again = trace(result.program.module, torch.zeros(2, 3, 6, 6))
    prune(again, ratio=0.3, criterion="random", seed=seed)


@quick
@given(steps, ratios, seeds)
def test_any_network_is_pruned_exactly(plan: list[Step], ratio: float, seed: int) -> None:
    check_network(plan, ratio, seed)


def check_groups(plan: list[Step], ratio: float, seed: int) -> None:
    program = trace(RandomNet(plan), torch.zeros(2, 3, 6, 6))
    result, _ = prune(program, ratio=ratio, criterion="random", seed=seed, cells="drop")
    again = trace(result.program.module, torch.zeros(2, 3, 6, 6))
    for cells in ("drop", "shrink"):
        prune(again, ratio=0.3, criterion="random", seed=seed, cells=cells)


@quick
@given(steps, ratios, seeds)
def test_any_network_loses_whole_groups_exactly(plan: list[Step], ratio: float, seed: int) -> None:
    check_groups(plan, ratio, seed)


@pytest.mark.slow
@thorough
@given(steps, ratios, seeds)
def test_any_network_loses_whole_groups_exactly_at_length(plan: list[Step], ratio: float, seed: int) -> None:
    check_groups(plan, ratio, seed)


@pytest.mark.slow
@thorough
@given(steps, ratios, seeds)
def test_any_network_is_pruned_exactly_at_length(plan: list[Step], ratio: float, seed: int) -> None:
    check_network(plan, ratio, seed)


def check_selection(plan: list[Step], fraction: float, scope: str, select: str) -> None:
    program = trace(RandomNet(plan), torch.zeros(2, 3, 6, 6))
    budget = {"ratio": 1 - fraction} if scope == "global" else {"params": fraction}
    try:
        result, _ = prune(program, **budget, criterion="random", scope=scope, select=select)
    except BudgetError:  # the smallest legal widths are too wide
        return
    again = trace(result.program.module, torch.zeros(2, 3, 6, 6))
    prune(again, ratio=0.3, criterion="random")


@quick
@given(steps, ratios, st.sampled_from(["global", "knapsack"]), st.sampled_from(["paying", "all"]))
def test_any_network_is_selected_from_exactly(plan: list[Step], fraction: float, scope: str, select: str) -> None:
    check_selection(plan, fraction, scope, select)


@pytest.mark.slow
@thorough
@given(steps, ratios, st.sampled_from(["global", "knapsack"]), st.sampled_from(["paying", "all"]))
def test_any_network_is_selected_from_exactly_at_length(
    plan: list[Step], fraction: float, scope: str, select: str
) -> None:
    check_selection(plan, fraction, scope, select)


@quick
@given(steps)
def test_the_analysis_is_consistent(plan: list[Step]) -> None:
    program = trace(RandomNet(plan), torch.zeros(2, 3, 6, 6))
    deps = analyze(program)
    for use in deps.slices:
        tensor = program.attribute(use.name)
        size = tensor.shape[use.axis]
        assert use.atoms.shape[-1] == size or use.atoms.ndim == 1 == tensor.ndim, use.name
        assert use.atoms.max() < len(deps.class_of)
    for tie in deps.ties:
        assert (deps.class_of[tie.a] == deps.class_of[tie.b]).all()
    grouped = np.concatenate([g.classes for g in deps.groups])
    assert len(np.unique(grouped)) == len(grouped), "a class is in two groups"
    for group in deps.groups:
        blocks = np.concatenate([b.classes for b in group.blocks])
        assert sorted(blocks.tolist()) == sorted(group.classes.tolist()), "blocks do not partition their group"
    for node, found in deps.labels.items():
        if isinstance(found, ChannelLabels):
            shape = value_of(node).shape
            for factor in found.factors:
                assert factor.atoms.shape == tuple(shape[a] for a in factor.axes), node.name
    output = next(n for n in program.graph.nodes if n.op == "output")
    (result,) = output.all_input_nodes
    pinned = np.concatenate([pin.atoms for pin in deps.pins])
    for factor in deps.labels_of(result).factors:
        assert np.isin(factor.atoms, pinned).all()


@quick
@given(steps)
def test_pruning_nothing_changes_nothing(plan: list[Step]) -> None:
    program = trace(RandomNet(plan), torch.zeros(2, 3, 6, 6))
    result = Prune(ratio=0.0).run(program)
    assert not result.changed
    assert result.program is program
    assert isinstance(result.program.graph, fx.Graph)


# Labels move as data does
# -----------------------------------------------------------------------------------------------

SIZES = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4)


def labelled(shape: list[int], axes: tuple[int, ...]) -> tuple[torch.Tensor, ChannelLabels]:
    """A tensor that holds at every position the atom that stands there, and its labels."""
    sizes = [shape[a] for a in axes]
    atoms = np.arange(int(np.prod(sizes)), dtype=np.int64).reshape(sizes)
    view = [shape[a] if a in axes else 1 for a in range(len(shape))]
    return torch.from_numpy(atoms).reshape(view).expand(shape).clone(), ChannelLabels((Factor(axes, atoms),))


def spread(labels: ChannelLabels, shape: tuple[int, ...]) -> torch.Tensor:
    """The atom at every position, for labels with one factor."""
    (factor,) = labels.factors
    view = [shape[a] if a in factor.axes else 1 for a in range(len(shape))]
    return torch.from_numpy(factor.atoms.copy()).reshape(view).expand(shape)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[torch.Tensor, ChannelLabels]:
    shape = draw(SIZES)
    wide = [a for a, size in enumerate(shape) if size > 1]
    if not wide:
        shape, wide = [*shape, 2], [len(shape)]
    axes = draw(st.sets(st.sampled_from(wide), min_size=1))
    return labelled(shape, tuple(sorted(axes)))


@settings(max_examples=300, derandomize=True, deadline=None)
@given(tensors(), st.randoms(use_true_random=False))
def test_labels_are_reshaped_as_data_is(pair: tuple[torch.Tensor, ChannelLabels], random: Random) -> None:
    data, labels = pair
    after = factorise(data.numel(), random)
    found = algebra.reshape(labels, tuple(data.shape), after)
    assert not found.lost.size
    assert torch.equal(spread(found.labels, tuple(after)), data.reshape(after))


def factorise(size: int, random: Random) -> list[int]:
    """Random sizes with this product."""
    sizes: list[int] = []
    while size > 1:
        divisors = [d for d in range(2, size + 1) if size % d == 0]
        sizes.append(random.choice(divisors))
        size //= sizes[-1]
    return sizes or [1]


@settings(max_examples=100, derandomize=True, deadline=None)
@given(tensors(), st.randoms(use_true_random=False))
def test_labels_are_permuted_as_data_is(pair: tuple[torch.Tensor, ChannelLabels], random: Random) -> None:
    data, labels = pair
    order = list(range(data.ndim))
    random.shuffle(order)
    assert torch.equal(spread(labels.renamed(order.index), tuple(data.permute(order).shape)), data.permute(order))


@settings(max_examples=100, derandomize=True, deadline=None)
@given(tensors(), st.data())
def test_labels_are_picked_as_data_is(pair: tuple[torch.Tensor, ChannelLabels], draw: st.DataObject) -> None:
    data, labels = pair
    axis = draw.draw(st.integers(0, data.ndim - 1))
    positions = draw.draw(st.lists(st.integers(0, data.shape[axis] - 1), min_size=1, max_size=5))
    picked = data.index_select(axis, torch.tensor(positions))
    found = labels.taken(axis, np.array(positions))
    assert torch.equal(spread(found, tuple(picked.shape)), picked)
