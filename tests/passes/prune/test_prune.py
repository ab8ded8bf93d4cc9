"""The prune pass: budgets, scopes, limits, options."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.cost import measure
from secateur.compiler.errors import BudgetError, OptionError
from secateur.compiler.plan import Plan
from secateur.compiler.program import Program
from secateur.passes.base import RemarkKind
from secateur.passes.prune.cuts import Opened
from secateur.passes.prune.prune import Prune
from support.pruning import plan_of, program_of, prune, widths


def block(i: int, o: int, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, **options), nn.BatchNorm2d(o), nn.ReLU())


class Net(nn.Module):
    """Wide enough that one channel is less than one per cent."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = block(3, 64)
        self.a = block(64, 64)
        self.b = block(64, 96)
        self.c = block(96, 96, groups=4)
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a(x)
        return self.head(self.c(self.b(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> Program:
    torch.manual_seed(0)
    return trace(Net(), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"macs": 0.2}, {"params": 0.7}, {"params": 0.25}])
def test_budgets_are_met_within_one_per_cent(net: Program, budget: dict[str, float], scope: str) -> None:
    result, _ = prune(net, **budget, scope=scope)
    (cost, fraction), before, after = *budget.items(), measure(net), measure(result.program)
    assert getattr(after, cost) / getattr(before, cost) == pytest.approx(fraction, abs=0.01)


def test_a_ratio_holds_for_every_group(net: Program) -> None:
    assert widths(prune(net, ratio=0.25)[0]) == {"stem.0": 48, "b.0": 72, "c.0": 72, "head": 10}


def test_a_global_ratio_holds_for_the_sum(net: Program) -> None:
    result, _ = prune(net, ratio=0.25, scope="global", criterion="l1")
    found = widths(result)
    assert sum(found.values()) == pytest.approx(266 - 64, abs=4)
    assert found != widths(prune(net, ratio=0.25)[0])


def test_the_weakest_go() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        module.get_parameter("0.weight").copy_(torch.tensor([0.1, 3.0, 0.2, 2.0]).view(4, 1, 1, 1).expand(4, 3, 1, 1))
        module.get_parameter("2.weight").fill_(1.0)
    result, _ = prune(trace(module, torch.zeros(1, 3, 4, 4)), ratio=0.5, criterion="l1")
    assert plan_of(result).kept["0.weight"] == {0: [1, 3]}
    assert plan_of(result).kept["2.weight"] == {1: [1, 3]}


def test_ratio_zero_changes_nothing(net: Program) -> None:
    result = Prune(ratio=0.0).run(net)
    assert not result.changed
    assert result.program is net
    assert result.remarks[-1].kind is RemarkKind.MISSED


@pytest.mark.parametrize("multiple", [8, 16])
def test_widths_are_rounded(net: Program, multiple: int) -> None:
    found = widths(prune(net, macs=0.4, round_to=multiple)[0])
    assert all(found[name] % multiple == 0 for name in ("stem.0", "b.0", "c.0"))
    assert found["stem.0"] < 64


def test_no_layer_gets_narrower_than_asked(net: Program) -> None:
    found = widths(prune(net, ratio=0.9, min_width=40)[0])
    assert all(width >= 40 for name, width in found.items() if name != "head")
    assert all(width >= 1 for width in widths(prune(net, ratio=0.99)[0]).values())


@pytest.mark.parametrize("options", [{"ratio": 0.6}, {"macs": 0.2}, {"macs": 0.2, "scope": "knapsack"}])
def test_no_group_loses_more_than_asked(net: Program, options: dict[str, Any]) -> None:
    options = {"scope": "global", "criterion": "l2", "normalize": "none", **options}
    whole = widths(prune(net, ratio=0.0)[0])

    def most(**more: float) -> float:
        found = widths(prune(net, **options, **more)[0])
        return max(1 - found[name] / width for name, width in whole.items())

    assert most() > 0.7 >= most(max_ratio=0.7)


def test_a_cap_is_a_floor_for_budgets(net: Program) -> None:
    assert widths(prune(net, ratio=0.9, max_ratio=0.25)[0]) == widths(prune(net, ratio=0.25)[0])
    with pytest.raises(BudgetError, match="cannot be reached"):
        Prune(macs=0.1, max_ratio=0.5).run(net)


def test_excluded_layers_keep_their_channels(net: Program) -> None:
    assert widths(prune(net, ratio=0.5, exclude=("b",))[0]) == {"stem.0": 32, "b.0": 96, "c.0": 48, "head": 10}
    assert widths(prune(net, ratio=0.5, exclude=("a.*",))[0])["stem.0"] == 64, "coupled with a"


def test_only_included_layers_are_pruned(net: Program) -> None:
    assert widths(prune(net, ratio=0.5, include=("b.0", "c"))[0]) == {"stem.0": 64, "b.0": 48, "c.0": 48, "head": 10}
    assert not Prune(ratio=0.5, include=("a",)).run(net).changed, "stem is coupled with a and not included"


def test_layers_have_their_own_fractions(net: Program) -> None:
    result, _ = prune(net, layers={"b.0": 0.5, "c.*": 0.25})
    assert widths(result) == {"stem.0": 64, "b.0": 48, "c.0": 72, "head": 10}


def test_the_order_of_layers_means_nothing(net: Program) -> None:
    fractions = {"stem": 0.25, "b.*": 0.5, "c.0": 0.75, "c": 0.5}
    first = Prune(layers=fractions).run(net)
    second = Prune(layers=dict(reversed(fractions.items()))).run(net)
    assert plan_of(first) == plan_of(second)
    assert widths(first)["c.0"] == 24, "an exact name outranks a pattern"


def test_coupled_layers_shrink_along_with_a_note(net: Program) -> None:
    result, _ = prune(net, layers={"a.0": 0.5})
    assert widths(result)["stem.0"] == 32
    (note,) = (r for r in result.remarks if r.kind is RemarkKind.NOTE)
    assert note.reason == "stem.0 shrink along: coupled"


def test_contradicting_fractions_are_refused(net: Program) -> None:
    with pytest.raises(OptionError, match=r"different numbers: (stem.0:0.5, a.0:0.25|a.0:0.25, stem.0:0.5)"):
        Prune(layers={"stem.0": 0.5, "a.0": 0.25}).run(net)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_names_nothing_is_refused(net: Program, option: str) -> None:
    options: dict[str, Any] = {"ratio": 0.5, option: ("bb.0",)}
    with pytest.raises(OptionError, match=rf"{option} names no layer: 'bb.0'") as caught:
        Prune(**options).run(net)
    assert "b.0" in str(caught.value.hint)


def test_an_unreachable_budget_says_what_is_reachable(net: Program) -> None:
    with pytest.raises(BudgetError) as caught:
        Prune(macs=0.01, min_width=32).run(net)
    error = caught.value
    assert error.what.startswith("macs=0.01 cannot be reached: the smallest legal widths keep 0.")
    assert str(error.hint).startswith("macs=0.")
    hint = float(str(error.hint).split()[0].removeprefix("macs="))
    prune(net, macs=hint, min_width=32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ratio": 0.5, "macs": 0.5},
        {"ratio": 1.0},
        {"ratio": -0.1},
        {"macs": 0.0},
        {"params": 1.5},
        {"ratio": 0.5, "round_to": 0},
        {"ratio": 0.5, "min_width": 0},
        {"ratio": 0.5, "max_ratio": 0.0},
        {"ratio": 0.5, "criterion": "l3"},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Prune(**options)


def test_what_cannot_be_pruned_is_remarked_on() -> None:
    result = Prune(ratio=0.5).run(program_of("unknown_function"))
    reasons = {r.node: r.reason for r in result.remarks if r.kind is RemarkKind.MISSED}
    assert reasons["stem"] == "stays whole: no rule for operation 'cumsum' (node cumsum)"
    assert reasons["head"] == "stays whole: the model's output (node output)"


def test_frozen_weights_stay_frozen() -> None:
    module = prune(program_of("frozen"), ratio=0.5)[0].program.module
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    assert frozen == {"stem.weight", "stem.bias"}


def test_the_plan_survives_json() -> None:
    for name in ("grouped_then_other_groups", "group_norm", "layer_norm_channels_last"):
        plan = plan_of(prune(program_of(name), ratio=0.5)[0])
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_the_plan_tells_the_widths(net: Program) -> None:
    plan = plan_of(prune(net, ratio=0.5)[0])
    (group,) = (g for g in plan.groups if g.name == "stem.0")
    assert (group.layers, group.before, group.after) == (("stem.0", "a.0"), 64, 32)
    columns: Any = plan.kept["c.0.weight"][1]
    assert [len(c) for c in columns] == [12] * 4
    assert len(plan.kept["c.0.weight"][0]) == 48


def test_the_same_seed_gives_the_same_plan(net: Program) -> None:
    plans = [plan_of(Prune(ratio=0.5, criterion="random", seed=s).run(net)) for s in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_pruning_leaves_the_program_alone(net: Program) -> None:
    state = {k: v.clone() for k, v in net.module.state_dict().items()}
    text = str(net.graph)
    result, _ = prune(net, ratio=0.5)
    assert str(net.graph) == text
    assert all(torch.equal(v, state[k]) for k, v in net.module.state_dict().items())
    assert result.program.inputs == net.inputs


def test_classes_that_stay_are_counted(net: Program) -> None:
    chosen = Prune(ratio=0.5).choose(Opened(net, analyze(net), ()))
    assert chosen.stats["removed"] == int((~chosen.kept.classes).sum()) == 32 + 48 + 48
