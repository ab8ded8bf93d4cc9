"""Budgets by knapsack, and in milliseconds, with a stopwatch that computes what it says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.backends.compile import compile as compile_model
from secateur.compiler.capture import trace
from secateur.compiler.cost import layer_costs, measure
from secateur.compiler.errors import BudgetError, OptionError
from secateur.compiler.program import Program
from secateur.passes.prune.latency import Floats, Profile
from secateur.passes.prune.prune import Prune
from secateur.passes.prune.sensitivity import Row, header
from support.pruning import prune, widths


class Net(nn.Module):
    """An early layer that costs many MACs and a late one that has many parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 48, 3, padding=1)
        self.b = nn.Conv2d(48, 48, 3, padding=1)
        self.c = nn.Conv2d(48, 192, 3, stride=8)
        self.head = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> Program:
    return trace(Net().eval(), torch.zeros(2, 3, 16, 16))


class Stopwatch:
    """An engine that takes a nanosecond per MAC, in whole blocks of output channels, and 2 us per layer.

    Networks as a whole are slower than their layers by ``overhead``, which a profile does not show.
    """

    conditions = "a computed engine"

    def __init__(self, overhead: float = 1.0, block: int = 16) -> None:
        self.overhead, self.block = overhead, block

    def profile(self, program: Program) -> Profile:
        layers = {c.layer: 2e-6 + 1e-9 * c.macs / c.outputs * self.up(c.outputs) for c in layer_costs(program)}
        return Profile(layers, 1e-5)

    def up(self, channels: int) -> int:
        return -(-channels // self.block) * self.block

    def compare(self, programs: Sequence[Program]) -> Floats:
        profiles = [self.profile(program) for program in programs]
        return np.array([[(p.seconds * 1e6) ** self.overhead for p in profiles]] * 3)


def timed(net: Program, watch: Stopwatch, **options: Any) -> tuple[float, Any]:
    result, _ = prune(net, scope="knapsack", stopwatch=lambda engine, threads, batch: watch, **options)
    times = watch.compare([net, result.program])[0]
    return float(times[1] / times[0]), result


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.4}, {"bytes": 0.6}, {"macs": 0.6, "params": 0.3}])
def test_a_knapsack_uses_its_budget_and_no_more(net: Program, budget: dict[str, float]) -> None:
    result, _ = prune(net, **budget, scope="knapsack")
    before, after = measure(net), measure(result.program)
    kept = [getattr(after, cost) / getattr(before, cost) / fraction for cost, fraction in budget.items()]
    assert max(kept) <= 1.0
    assert max(kept) > 0.95


def test_a_knapsack_does_less_damage_than_uniform_widths(net: Program) -> None:
    uniform, _ = prune(net, macs=0.5)
    chosen, _ = prune(net, macs=0.5, scope="knapsack")

    def damage(program: Program) -> float:
        return -sum(np.log(width / full) for width, full in zip(*map(_widths, (program, net)), strict=True))

    assert damage(chosen.program) < damage(uniform.program)


def _widths(program: Program) -> list[int]:
    return [cost.outputs for cost in layer_costs(program)]


def test_a_knapsack_says_what_is_reachable(net: Program) -> None:
    with pytest.raises(BudgetError, match=r"params=0.001 cannot be reached: the smallest legal widths keep 0\.0"):
        prune(net, params=0.001, min_width=8, scope="knapsack")


@pytest.mark.parametrize("overhead", [1.0, 0.9])
def test_a_latency_is_met_where_the_model_is_off(net: Program, overhead: float) -> None:
    fraction, result = timed(net, Stopwatch(overhead), latency=0.6)
    assert fraction == pytest.approx(0.6, rel=0.05)
    assert result.stats["latency"] == pytest.approx(fraction)
    assert "on a computed engine: " in result.remarks[-1].reason


def test_widths_are_those_that_the_engine_likes(net: Program) -> None:
    _, result = timed(net, Stopwatch(), latency=0.6)
    assert (result.stats["block_out"], result.stats["block_in"]) == (16, 1)
    assert widths(result)["c"] % 16 == 0  # what reads it is cheap: nothing is won by a width in between


def test_a_latency_by_uniform_widths(net: Program) -> None:
    watch = Stopwatch(block=1)
    result, _ = prune(net, latency=0.6, stopwatch=lambda engine, threads, batch: watch)
    times = watch.compare([net, result.program])[0]
    assert times[1] / times[0] == pytest.approx(0.6, rel=0.06)


def test_a_latency_without_a_stopwatch_is_refused(net: Program) -> None:
    with pytest.raises(OptionError, match="a budget in milliseconds needs an engine"):
        prune(net, latency=0.5)


def test_a_latency_that_cannot_be_met(net: Program) -> None:
    with pytest.raises(BudgetError, match=r"latency=0\.01 cannot be reached"):
        timed(net, Stopwatch(), latency=0.01)


def test_measured_damage_decides(net: Program, tmp_path: Path) -> None:
    file = tmp_path / "scan.csv"
    measured = [("a", 48, 9.0), ("b", 48, 0.01), ("c", 192, 9.0)]  # nobody misses b
    rows = [Row(name, 0.5, width, width // 2, 0.9, 0.9, 80.0, 0.5 + rise) for name, width, rise in measured]
    file.write_text(header({"format": 1, "dense": {"top1": 90.0, "loss": 0.5}}) + "".join(row.line for row in rows))
    chosen = widths(prune(net, macs=0.6, scope="knapsack", sensitivity=str(file))[0])
    assert chosen["b"] < 30 < chosen["a"]
    assert chosen["c"] == 192


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"macs": 0.5, "sensitivity": "scan.csv"}, "sensitivity is for scope=knapsack"),
        ({"macs": 0.5, "params": 0.5}, "prune needs exactly one budget, params and macs given"),
        ({"ratio": 0.5, "scope": "knapsack"}, "scope=knapsack has no use for ratio"),
        ({"latency": 1.5}, "latency=1.5 is out of range"),
        ({"latency": 0.5, "threads": 0}, "threads=0 is out of range"),
    ],
)
def test_options_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        Prune(**options)


class Standardised(nn.Conv2d):
    """Subtracts the mean of every filter, as networks without norms do."""

    def forward(self, input: Tensor) -> Tensor:
        shape = self.weight.shape
        rows = F.batch_norm(self.weight.reshape(1, shape[0], -1), None, None, training=True, momentum=0.0)
        return F.conv2d(input, rows.reshape(shape), self.bias, self.stride, self.padding)


def test_computed_weights_are_told_what_frees_them() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 8, 3), nn.ReLU(), Standardised(8, 8, 3)
    ).eval()
    program = trace(net, torch.zeros(1, 3, 12, 12))
    for scope in ("global", "knapsack"):
        with pytest.raises(BudgetError, match="fold-constants in front makes numbers of weights"):
            compile_model(program, pipeline=f"prune{{macs=0.6 scope={scope}}}")
    made = compile_model(program, pipeline="fold-constants,prune{macs=0.6}")
    assert made.report["kept"]["macs"] < 0.65
