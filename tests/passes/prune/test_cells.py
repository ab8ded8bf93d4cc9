"""Whole heads: which tensors they are made of, in every spelling; budgets, scores and refusals."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.cost import measure
from secateur.compiler.cost_model import CostModel
from secateur.compiler.errors import InternalError, OptionError
from secateur.compiler.plan import compose
from secateur.compiler.program import Program
from secateur.compiler.proof import prove
from secateur.passes.base import PassResult, RemarkKind
from secateur.passes.prune.cuts import Opened
from secateur.passes.prune.prune import Prune
from secateur.passes.slicing.plan import plan_of as make_plan
from secateur.passes.slicing.rewrite import rewrite
from secateur.passes.slicing.tensors import KeptChannels, slice_tensors
from support import emitted
from support.heads import HEAD_CASES, HEADS, INSIDE, WIDTH, Attention, N
from support.pruning import kept_of, plan_of, prune, widths

every_case = pytest.mark.parametrize("name", HEAD_CASES)
OTHERS = {
    "WeightsPerHead": ("head",),
    "AddedUp": ("head",),
    "OfTorch": ("attn.out_proj", "head"),
    "SwinV2": ("cpb.0", "proj", "head"),
}


@cache
def program_of(name: str) -> Program:
    return HEAD_CASES[name].program()


def drop(program: Program, name: str = "", **options: Any) -> PassResult:
    """Drop half of the heads and nothing else; proven."""
    chosen = {"ratio": 0.5, "criterion": "random", "exclude": OTHERS.get(name, ("proj", "head")), **options}
    return prune(program, cells="drop", **chosen)[0]


def lost(before: Program, after: Program) -> dict[str, dict[int, int]]:
    """Tensor -> axis -> how much shorter it is."""
    pairs = ((name, before.attribute(name), tensor) for name, tensor in after.tensors())
    found = {
        name: {a: m - n for a, (m, n) in enumerate(zip(old.shape, new.shape, strict=True)) if m != n}
        for name, old, new in pairs
    }
    return {name: axes for name, axes in found.items() if axes}


# Which tensors -------------------------------------------------------------------------------------------------------


@every_case
def test_half_of_the_heads(name: str) -> None:
    """All tensors that have something of a head lose it, and no others lose anything."""
    result = drop(program_of(name), name)
    expected = {
        tensor: {axis: HEADS // 2 * size for axis, size in axes.items()}
        for tensor, axes in HEAD_CASES[name].sliced.items()
    }
    assert lost(program_of(name), result.program) == expected


@every_case
def test_no_tensor_may_be_forgotten(name: str) -> None:
    """Were one axis of one tensor left whole, the program would not run, or not be what the mask makes of it."""
    program = program_of(name)
    deps = analyze(program, whole_cells=True)
    options: dict[str, Any] = {"ratio": 0.5, "criterion": "random", "exclude": OTHERS.get(name, ("proj", "head"))}
    kept = Prune(cells="drop", **options).choose(Opened(program, deps, ())).kept
    plan = make_plan(kept, slice_tensors(program, kept)[1])
    cut = [use for use in deps.slices if not kept.stays_put(use.atoms)]
    assert {(use.name, use.axis) for use in cut} == {(t, a) for t, x in HEAD_CASES[name].sliced.items() for a in x}
    for where in {(use.name, use.axis) for use in cut}:
        rest = tuple(use for use in deps.slices if (use.name, use.axis) != where)
        forgetful = KeptChannels(replace(deps, slices=rest), kept.classes)
        try:
            wrong = rewrite(program, slice_tensors(program, forgetful)[0], forgetful)
            holds = prove(program, wrong.module, plan).holds
        except (InternalError, RuntimeError):
            continue
        assert not holds, where


def test_a_head_is_queries_keys_values_and_columns() -> None:
    result = drop(program_of("Windows"))
    heads = kept_of(result, "table", 1)
    rows = np.arange(3 * WIDTH).reshape(3, HEADS, INSIDE)[:, heads]
    assert kept_of(result, "qkv.weight") == kept_of(result, "qkv.bias") == rows.ravel().tolist()
    assert kept_of(result, "proj.weight", 1) == rows[0].ravel().tolist()


def test_talking_heads_are_others_behind_every_mixture() -> None:
    """Scores between the two convolutions lose heads of their own; queries and values, in one tensor, the same ones."""
    for seed in range(6):
        result = drop(program_of("TalkingHeads"), seed=seed)
        between = kept_of(result, "before.weight")
        rows = kept_of(result, "before.weight", 1)
        assert kept_of(result, "after.weight", 1) == between
        assert kept_of(result, "after.weight") == rows
        if between != rows:
            return
    pytest.fail("heads before and behind the first convolution were the same for all seeds")


@every_case
def test_what_is_left_is_an_ordinary_network(name: str) -> None:
    """It reads as source, runs for other batch sizes, exports, trains, and is pruned again in every way."""
    program = HEAD_CASES[name].program()
    first = drop(program, name)
    shapes = {key: tensor.shape for key, tensor in program.tensors()}
    for options in ({"cells": "drop"}, {"cells": "shrink"}):
        second, _ = prune(first.program, ratio=0.5, criterion="random", seed=1, **options)
        both = compose([first.plan, second.plan], shapes)
        assert prove(program, second.program.module, both).holds
    module = first.program.module
    torch.export.export(module, (torch.randn(2, N, WIDTH),))
    module(torch.randn(5, N, WIDTH)).square().mean().backward()
    emitted.check(first.program)


@every_case
def test_heads_go_after_their_channels(name: str) -> None:
    first, _ = prune(program_of(name), ratio=0.4, criterion="random")
    second = drop(first.program, name)
    sliced = lost(first.program, second.program)
    assert set(sliced) == set(HEAD_CASES[name].sliced)
    both = compose([first.plan, second.plan], {key: tensor.shape for key, tensor in program_of(name).tensors()})
    assert prove(program_of(name), second.program.module, both).holds


@every_case
def test_costs_are_predicted(name: str) -> None:
    program = program_of(name)
    deps = analyze(program, whole_cells=True)
    model = CostModel(program, deps)
    chosen = Prune(ratio=0.5, cells="drop", criterion="random").choose(Opened(program, deps, ()))
    assert model(chosen.kept.classes) == measure(drop(program, exclude=()).program)


# Budgets and scores --------------------------------------------------------------------------------------------------


class Block(Attention):
    """With a shortcut and a perceptron."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.split(x)
        x = x + self.proj(self.join(self.weigh(self.scores(q, k)) @ v))
        return self.head(x + self.mlp(x))


@pytest.fixture(scope="module")
def block() -> Program:
    return trace(Block(), torch.zeros(2, N, WIDTH))


def heads_of(result: PassResult) -> int:
    return result.program.attribute("qkv.weight").shape[0] // (3 * INSIDE)


@pytest.mark.parametrize(("ratio", "left"), [(0.25, 3), (0.5, 2), (0.74, 2), (0.75, 1), (0.99, 1)])
def test_a_ratio_is_of_heads(block: Program, ratio: float, left: int) -> None:
    result, _ = prune(block, ratio=ratio, cells="drop")
    assert heads_of(result) == left
    assert widths(result)["mlp.0"] == 64 - int(64 * ratio), "channels that are in no cells go one by one"


@pytest.mark.parametrize(("pattern", "number", "left"), [("qkv", 0.25, 3), ("q*", 0.5, 2), ("qkv", 3.0, 1)])
def test_a_layer_has_its_own_fraction_or_count(block: Program, pattern: str, number: float, left: int) -> None:
    result, _ = prune(block, layers={pattern: number}, cells="drop")
    assert heads_of(result) == left
    assert set(lost(block, result.program)) == {"qkv.weight", "qkv.bias", "proj.weight"}


@pytest.mark.parametrize("options", [{}, {"scope": "global", "criterion": "l1"}, {"scope": "knapsack"}])
@pytest.mark.parametrize("budget", [{"macs": 0.6}, {"params": 0.55}])
def test_budgets_are_met_with_whole_heads(block: Program, budget: dict[str, float], options: dict[str, Any]) -> None:
    result, _ = prune(block, **budget, **options, cells="drop")
    ((cost, fraction),) = budget.items()
    assert getattr(measure(result.program), cost) / getattr(measure(block), cost) == pytest.approx(fraction, abs=0.03)
    assert result.program.attribute("qkv.weight").shape[0] % (3 * INSIDE) == 0


def test_a_global_ratio_counts_the_channels_of_heads() -> None:
    """Where three weak heads go first, 15 channels of the perceptron stay that would go otherwise."""
    removed: list[int] = []
    for factor in (1e-3, 1e3):
        module = Block()
        with torch.no_grad():
            module.qkv.weight.mul_(factor)
        options: dict[str, Any] = {"scope": "global", "normalize": "none", "criterion": "l1", "exclude": ("embed",)}
        result, _ = prune(trace(module, torch.zeros(2, N, WIDTH)), ratio=0.25, cells="drop", **options)
        removed.append(64 - widths(result)["mlp.0"])
        assert heads_of(result) == (1 if factor < 1 else HEADS)
    assert removed[1] - removed[0] == 3 * INSIDE


def test_kept_widths_are_those_of_heads(block: Program) -> None:
    assert heads_of(prune(block, ratio=0.6, cells="drop", round_to=10)[0]) == 2, "2 of 5 channels are 10, 3 are 15"
    assert heads_of(prune(block, ratio=0.9, cells="drop", min_width=11)[0]) == 3, "3 of 5 channels are not below 11"


@pytest.mark.parametrize("aggregate", ["mean", "sum", "max", "product"])
def test_the_weakest_head_goes_even_if_its_best_channel_is_strong(aggregate: str) -> None:
    module = Attention()
    with torch.no_grad():
        weight = module.qkv.weight.fill_(1.0).view(3, HEADS, INSIDE, WIDTH)
        weight[:, 2] = 0.1
        weight[:, 1] = 0.3
        if aggregate != "max":
            weight[0, 2, 0, 0] = 1.5  # one strong weight in a weak head
    options: dict[str, Any] = {"layers": {"qkv": 0.5}, "criterion": "l1", "aggregate": aggregate}
    result, _ = prune(trace(module, torch.zeros(2, N, WIDTH)), cells="drop", **options)
    assert {row // INSIDE % HEADS for row in kept_of(result, "qkv.weight")} == {0, 3}


def test_a_single_head_is_a_layer_like_any_other(block: Program) -> None:
    one, _ = prune(block, layers={"qkv": 0.99}, cells="drop")
    result, _ = prune(one.program, ratio=0.4, cells="drop")
    assert result.program.attribute("qkv.weight").shape[0] == 3 * 3


def test_the_default_keeps_all_heads(block: Program) -> None:
    result, _ = prune(block, ratio=0.4)
    rows = np.array(kept_of(result, "qkv.weight"))
    assert np.bincount(rows // INSIDE).tolist() == [3] * 12


def test_channels_behind_cuts_go_one_by_one(block: Program) -> None:
    """Where layers read what they need of a trunk, heads still go as wholes."""
    for select in ("all", "paying"):
        result, _ = prune(block, macs=0.6, scope="global", criterion="random", cells="drop", select=select)
        assert result.program.attribute("qkv.weight").shape[0] % (3 * INSIDE) == 0


# Refusals ------------------------------------------------------------------------------------------------------------


class BiasGiven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = Attention()

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.a.split(x)
        return self.a.head(self.a.proj(self.a.join(self.product(q, k, v, bias))))

    def product(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return (self.a.scores(q, k) + bias).softmax(-1) @ v


class MaskGiven(BiasGiven):
    def product(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class WeightsGiven(BiasGiven):
    def product(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return super().product(q, k, bias @ v, bias[:, :1])


class ScaleGiven(BiasGiven):
    def product(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return super().product(q * bias[..., :1, :1], k, v, bias[:, :1])


class OverHeads(Attention):
    def weigh(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)


class SomeHeadsMatter(Attention):
    def weigh(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1) * scores[:, 1:2].sigmoid() + scores[:, 2].unsqueeze(1)


class RolledValues(Attention):
    def split(self, x: Tensor) -> Any:
        q, k, v = super().split(x)
        return q, k, v.roll(1, 1)


def refusals(module: nn.Module, *more: Tensor) -> Iterator[str]:
    """Yield why the heads of a module stay."""
    program = trace(module, (torch.zeros(2, N, WIDTH), *more))
    result = Prune(ratio=0.5, cells="drop", include=("*qkv",)).run(program)
    assert not result.changed
    for remark in result.remarks:
        if remark.kind is RemarkKind.MISSED and remark.node.endswith("qkv"):
            yield remark.reason


BIAS = torch.zeros(1, HEADS, N, N)


@pytest.mark.parametrize(
    ("module", "more", "reason"),
    [
        (BiasGiven, (BIAS,), "stays whole: combined by add with the model's input 'bias' (node add)"),
        (MaskGiven, (BIAS,), "stays whole: combined by scaled_dot_product_attention with the model's input 'bias'"),
        (WeightsGiven, (BIAS,), "stays whole: matmul multiplies cells by something that is fixed (node matmul)"),
        (ScaleGiven, (BIAS,), "stays whole: combined by mul with the model's input 'bias' (node mul)"),
        (OverHeads, (), "stays whole: softmax mixes the channels along this axis (node softmax)"),
        (RolledValues, (), "its 4 cells stay, since none goes without the others: cells stand in a full block"),
    ],
)
def test_heads_that_cannot_go(module: type[nn.Module], more: tuple[Tensor, ...], reason: str) -> None:
    (said,) = refusals(module(), *more)
    assert said.startswith(reason), said


def test_heads_that_are_picked_stay_and_others_go() -> None:
    rows = kept_of(drop(trace(SomeHeadsMatter(), torch.zeros(2, N, WIDTH)), ratio=0.9), "qkv.weight")
    assert {row // INSIDE % HEADS for row in rows} == {1, 2}


@pytest.mark.parametrize("module", [BiasGiven, MaskGiven])
def test_a_bias_for_all_heads_holds_none_back(module: type[nn.Module]) -> None:
    program = trace(module(), (torch.zeros(2, N, WIDTH), torch.zeros(2, 1, N, N)))
    sliced = lost(program, drop(program, exclude=("a.proj", "a.head")).program)
    assert sliced == {"a.qkv.weight": {0: 30}, "a.qkv.bias": {0: 30}, "a.proj.weight": {1: 10}}


def test_measured_sensitivities_are_of_no_use() -> None:
    with pytest.raises(OptionError, match="cells=drop has no use for sensitivity"):
        Prune(macs=0.5, scope="knapsack", sensitivity="x.csv", cells="drop")


def test_a_plan_says_which_heads() -> None:
    plan = plan_of(drop(program_of("SwinV2"), "SwinV2"))
    assert len(plan.kept["scale"][0]) == 2
    (group,) = (g for g in plan.groups if "qkv" in g.layers)
    assert (group.before, group.after) == (WIDTH, WIDTH // 2), "in channels"
    assert set(group.layers) == {"qkv", "cpb.2"}
