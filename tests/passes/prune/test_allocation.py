"""Widths of wide layers: problems with a few options each come as near to the best as all options at once."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.cost_model import CostModel
from secateur.passes.prune import allocation
from secateur.passes.prune.allocation import Limit, allocate
from secateur.passes.prune.damage import Floats, damage_of
from secateur.passes.prune.selection import Limits, Selection

WIDTHS = (60, 90, 44)


def problem(seed: int) -> tuple[Selection, CostModel, list[Floats]]:
    convolutions = [nn.Conv2d(i, o, 3, padding=1) for i, o in zip((3, *WIDTHS), (*WIDTHS, 5), strict=True)]
    program = trace(nn.Sequential(*convolutions).eval(), torch.zeros(1, 3, 4, 4))
    deps = analyze(program)
    random = np.random.default_rng(seed)
    scores = random.lognormal(sigma=1.0 + seed, size=int(deps.class_of.max()) + 1)
    selection = Selection(deps, scores, Limits(), lambda group: False)
    return selection, CostModel(program, deps), damage_of(deps, selection)


def best(selection: Selection, model: CostModel, damage: list[Floats], at_most: float) -> float:
    """Try all widths of the first two layers; of the third the widest that fits does the least damage."""
    free = [index for index, allowed in enumerate(selection.allowed) if len(allowed) > 1]
    assert [int(selection.full[index]) for index in free] == list(WIDTHS)
    least = np.inf
    per_tap = 16 * 9
    for a, b in product(range(1, WIDTHS[0] + 1), range(1, WIDTHS[1] + 1)):
        rest = (at_most - per_tap * (3 * a + a * b)) / (per_tap * (b + 5))
        if rest >= 1:
            c = min(WIDTHS[2], int(rest + 1e-9))
            least = min(least, sum(float(damage[index][level]) for index, level in zip(free, (a, b, c), strict=True)))
    assert model.macs(model.counts(selection.keep(selection.full))) == per_tap * (3 * 60 + 60 * 90 + 90 * 44 + 44 * 5)
    return least


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_widths_are_nearly_the_best_there_are(seed: int, fraction: float) -> None:
    selection, model, damage = problem(seed)
    whole = model.macs(model.counts(selection.keep(selection.full)))
    found = allocate(selection, model, damage, [Limit("macs", fraction, model.macs, fraction * whole)])
    assert model.macs(model.counts(selection.keep(found.levels))) <= fraction * whole * (1 + 1e-12)
    assert found.damage == pytest.approx(sum(d[level] for d, level in zip(damage, found.levels, strict=True)))
    least = best(selection, model, damage, fraction * whole)
    assert least - 1e-9 <= found.damage <= 1.01 * least


def test_multiples_come_first_and_what_lies_between_only_where_it_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[list[int]] = []
    solve = allocation.solve

    def watched(choices: allocation.Choices, *rest: object, **options: float) -> object:
        offered.append([len(table) for table in choices.tables])
        return solve(choices, *rest, **options)  # pyright: ignore

    monkeypatch.setattr(allocation, "solve", watched)
    selection, model, damage = problem(0)
    whole = model.macs(model.counts(selection.keep(selection.full)))
    limits = [Limit("macs", 0.5, model.macs, 0.5 * whole)]
    found = allocate(selection, model, damage, limits, multiple=16)
    assert max(map(max, offered)) <= allocation.PER_BLOCK[1] + 1
    assert len(offered) > 2
    assert found.damage <= 1.01 * best(selection, model, damage, 0.5 * whole)


def test_without_a_choice_in_time_the_smallest_widths_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def none(*rest: object, seconds: float, gap: float) -> None:
        asked.append(seconds)

    monkeypatch.setattr(allocation, "solve", none)
    selection, model, damage = problem(0)
    found = allocate(selection, model, damage, [Limit("macs", 0.5, model.macs, 1e9)])
    assert asked[:2] == [allocation.SECONDS, allocation.PATIENCE * allocation.SECONDS]
    assert np.array_equal(found.levels, selection.lowest())
    assert found.gap == 1.0
