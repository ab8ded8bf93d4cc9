"""Scores from criterion to class: fallbacks, and what makes groups comparable."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.dependency import ChannelDependencies
from secateur.passes.prune.criteria import CRITERIA, criterion
from secateur.passes.prune.criteria.base import Context, Scores
from secateur.passes.prune.scoring import kinds, normalized, score_classes
from support.pruning import deps_of, group_of, program_of
from support.scores import context_of, linear

Normalize = Literal["group", "none", "isomorphic", "lamp"]


def alike() -> nn.Module:
    """Two 3x3 convolutions with batch norm ("0", "3"), then one without ("6"); weights of 1, 2 and 3."""
    module = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 2, 1)),
    )
    with torch.no_grad():
        for index, value in ((0, 1.0), (3, 2.0), (6, 3.0)):
            module.get_parameter(f"{index}.weight").fill_(value)
    return module


def deps_of_alike() -> ChannelDependencies:
    return analyze(trace(alike().eval(), torch.zeros(1, 3, 8, 8)))


def test_kinds_are_what_channels_touch_not_how_many_they_are() -> None:
    deps = deps_of_alike()
    found = {group.name: kind for group, kind in zip(deps.groups, kinds(deps), strict=True)}
    assert found["0"] == found["3"]
    assert found["6"] not in (found["0"], found["8"])
    assert found["6"] == {(("conv", 0, "produces"), 1), (("conv", 0, "carries"), 1), (("conv", 1, "consumes"), 1)}


def given(deps: ChannelDependencies, **of: list[float]) -> Scores:
    """Scores of the groups named "_0", "_3", ..."""
    scores = np.zeros(int(deps.class_of.max()) + 1)
    for name, values in of.items():
        scores[group_of(deps, name[1:]).classes] = values
    return scores


def test_isomorphic_divides_by_the_mean_of_the_kind() -> None:
    deps = deps_of_alike()
    scores = given(deps, _0=[1.0] * 4, _3=[2.0, 2.0, 2.0, 2.0, 3.0, 5.0], _6=[4.0, 8.0, 8.0, 8.0, 12.0])
    found = normalized(scores, deps, "isomorphic")
    assert found[group_of(deps, "0").classes] == pytest.approx([0.5] * 4), "20 over 10 channels of both groups"
    assert found[group_of(deps, "3").classes] == pytest.approx([1.0, 1.0, 1.0, 1.0, 1.5, 2.5])
    assert found[group_of(deps, "6").classes] == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.5])


def test_lamp_divides_squares_by_those_of_the_stronger() -> None:
    deps = deps_of_alike()
    found = normalized(given(deps, _0=[2.0, 1.0, 3.0, 1.0], _6=[0.0] * 5), deps, "lamp")
    assert found[group_of(deps, "0").classes] == pytest.approx([4 / 13, 1 / 15, 1.0, 1 / 15])
    assert found[group_of(deps, "6").classes].tolist() == [0.0] * 5


@pytest.mark.parametrize("how", ["group", "none"])
def test_nothing_is_done_here(how: Normalize) -> None:
    deps = deps_of_alike()
    scores = given(deps, _0=[2.0, 1.0, 3.0, 1.0])
    found = normalized(scores, deps, how)
    assert found.tolist() == scores.tolist()
    assert found is not scores


@pytest.mark.parametrize("how", ["group", "none", "isomorphic", "lamp"])
def test_the_order_within_a_group_stays(how: Normalize) -> None:
    deps = deps_of("residual")
    scores = np.random.default_rng(0).random(int(deps.class_of.max()) + 1)
    found = normalized(scores, deps, how)
    for group in deps.groups:
        assert found[group.classes].argsort().tolist() == scores[group.classes].argsort().tolist()


def test_classes_that_nothing_is_said_of_have_the_fallbacks_score_or_none() -> None:
    context = Context(program_of("batch_norm"), deps_of("batch_norm"))
    silent = np.isnan(criterion("bn-scale").score(context))
    assert silent.any()
    found = score_classes(context, "bn-scale")
    assert np.array_equal(found[silent], np.nan_to_num(criterion("l1").score(context))[silent])
    assert (score_classes(context, "random") >= 0).all()


def test_aggregation_reaches_the_score() -> None:
    """Channel 0 has a row of (1) and a column of (5), channel 1 of (2) and (1)."""
    module = nn.Sequential(linear([1.0], [2.0]), linear([5.0, 1.0]))
    asked = {
        how: score_classes(context_of(module, torch.zeros(1, 1), aggregate=how), "l1")
        for how in ("mean", "sum", "max", "product")
    }
    classes = group_of(context_of(module, torch.zeros(1, 1)).deps, "0").classes
    assert asked["mean"][classes].tolist() == [3.0, 1.5]
    assert asked["sum"][classes].tolist() == [6.0, 3.0]
    assert asked["max"][classes].tolist() == [5.0, 2.0]
    assert asked["product"][classes] == pytest.approx([5**0.5, 2**0.5])


@pytest.mark.parametrize("name", [name for name in CRITERIA if not criterion(name).needs_data])
def test_the_same_context_gives_the_same_scores(name: str) -> None:
    context = Context(program_of("residual"), deps_of("residual"))
    assert np.array_equal(score_classes(context, name), score_classes(context, name))
