"""Rounds are interleaved, ratios are paired, and what is not faster or does not run is said. Time is made up here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.backends.bench import Candidate, bench
from secateur.backends.engines.base import Emission, Engine, Unsupported
from secateur.backends.engines.lower import is_quantized
from secateur.backends.engines.op_times import OpTime
from secateur.compiler.errors import CompilerError, MissingExtraError, OptionError
from secateur.compiler.program import Program
from support.quantized_by_hand import Mixed, quantized
from support.small import Residual, captured


class Machine:
    """A clock that only engines move, each by its own number of seconds; calls are recorded."""

    def __init__(self, seconds: dict[int, Callable[[int], float]]) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.calls: list[tuple[int, int]] = []

    def clock(self) -> float:
        return self.now

    def engine(self, key: int) -> Engine:
        def run(*inputs: Tensor) -> list[Tensor]:
            self.calls.append((key, inputs[0].shape[0]))
            self.now += self.seconds[key](len(self.calls))
            return [inputs[0]]

        return run


class Fake:
    """A backend over the machine; candidates are told apart by the size of their first input."""

    name = "fake"
    integers = True

    def __init__(self, machine: Machine, *, refuse: dict[int, CompilerError] | None = None) -> None:
        self.machine, self.refuse = machine, refuse or {}

    def unsupported(self, program: Program) -> list[Unsupported]:
        return [Unsupported("fc", "too odd")] if _key(program) == 99 else []

    def build(self, program: Program, *, threads: int) -> Engine:
        if _key(program) in self.refuse:
            raise self.refuse[_key(program)]
        return self.machine.engine(_key(program))

    def emit(self, program: Program, path: Path) -> Emission:
        raise NotImplementedError

    def load(self, path: Path, *, threads: int) -> Engine:
        raise NotImplementedError


def _key(program: Program) -> int:
    return program.inputs[0].shape[-1]


def _candidates(*keys: int) -> list[Candidate]:
    return [Candidate(f"model {key}", captured(nn.ReLU(), 1, key)) for key in keys]


def test_rounds_are_interleaved_and_ratios_paired() -> None:
    # The machine slows down all the time: medians alone would say little, pairs are exact.
    machine = Machine({1: lambda n: 1.0 + n / 100, 2: lambda n: 0.5 + n / 200, 3: lambda n: 2.0})
    report = bench(_candidates(1, 2, 3), repeats=4, min_seconds=0, find=lambda _: Fake(machine), clock=machine.clock)
    timed = [key for key, _ in machine.calls[-12:]]
    assert timed == [1, 2, 3, 2, 3, 1, 3, 1, 2, 1, 2, 3]
    first, second, third = report.rows
    assert first.ratio is None
    assert second.ratio is not None
    assert second.ratio.median == pytest.approx(0.5, rel=0.05)
    assert second.ratio.lower <= second.ratio.median <= second.ratio.upper < 1
    assert third.p50 == pytest.approx(2.0)
    assert [row.rounds for row in report.rows] == [4, 4, 4]
    assert report.notes == (f"fake, 1 thread, batch 1: model 3 is not faster than model 1 ({third.ratio})",)


def test_quantiles_are_of_the_rounds() -> None:
    # Two calls warm up: by then the clock has moved far enough.
    seconds = iter([9.0, 9.0, *map(float, range(1, 12))])
    machine = Machine({1: lambda n: next(seconds)})
    (row,) = bench(_candidates(1), repeats=11, min_seconds=0, find=lambda _: Fake(machine), clock=machine.clock).rows
    assert row.p50 == 6.0
    assert row.p90 == 10.0


def test_rounds_go_on_until_the_time_is_up() -> None:
    machine = Machine({1: lambda n: 0.25})
    (row,) = bench(_candidates(1), repeats=3, min_seconds=2.0, find=lambda _: Fake(machine), clock=machine.clock).rows
    assert row.rounds == 8


def test_every_setting_is_measured_with_its_batch() -> None:
    machine = Machine({1: lambda n: 1.0})
    report = bench(
        _candidates(1),
        backends=["a", "a"],
        threads=[1, 2],
        batch_sizes=[1, 8],
        repeats=1,
        min_seconds=0,
        find=lambda _: Fake(machine),
        clock=machine.clock,
    )
    assert [str(row.setting) for row in report.rows] == [
        f"fake, {threads}, batch {batch}" for threads in ("1 thread", "2 threads") for batch in (1, 8)
    ]
    assert {batch for _, batch in machine.calls} == {1, 8}


def test_what_does_not_run_is_refused_with_the_reason() -> None:
    machine = Machine({2: lambda n: 1.0, 4: lambda n: 1.0})
    fake = Fake(machine, refuse={1: CompilerError("no such operator")})
    machine.seconds[3] = _fail
    found = bench(_candidates(1, 99, 2, 3), repeats=1, min_seconds=0, find=lambda _: fake, clock=machine.clock)
    assert [(r.candidate, r.reason) for r in found.refusals] == [
        ("model 1", "no such operator"),
        ("model 99", "fc: too odd"),
        ("model 3", "takes batches of 7 only"),
    ]
    (row,) = found.rows
    assert row.candidate == "model 2"
    assert row.ratio is None


def _fail(calls: int) -> float:
    raise CompilerError("takes batches of 7 only")


def test_a_missing_package_is_an_error() -> None:
    machine = Machine({})
    fake = Fake(machine, refuse={1: MissingExtraError("not installed")})
    with pytest.raises(MissingExtraError, match="not installed"):
        bench(_candidates(1), find=lambda _: fake, clock=machine.clock)


@pytest.mark.parametrize(
    ("options", "where"),
    [({"threads": [0]}, "--threads"), ({"batch_sizes": []}, "--batch"), ({"repeats": 0}, "--repeats")],
)
def test_numbers_out_of_range(options: dict[str, Any], where: str) -> None:
    with pytest.raises(OptionError, match=f"at least 1\n  at: {where}"):
        bench(_candidates(1), **options)


def test_unknown_engines_and_equal_names() -> None:
    with pytest.raises(OptionError, match=r"no engine 'onxx'\n.*\n.*onnx"):
        bench(_candidates(1), backends=["onxx"])
    with pytest.raises(OptionError, match="different names"):
        bench(_candidates(1) * 2)


def test_ragged_widths_are_named_where_they_cost() -> None:
    class Onnx(Fake):
        name = "onnx"

    machine = Machine({8: lambda n: 1.0, 9: lambda n: 1.0})
    for width, hinted in ((12, True), (16, False)):
        pair = [Candidate(f"{size}", captured(nn.Conv2d(3, width, 1), 1, 3, 8, size)) for size in (8, 9)]
        report = bench(pair, repeats=1, min_seconds=0, find=lambda _: Onnx(machine), clock=machine.clock)
        assert any("multiples of 16" in note for note in report.notes) is hinted


def test_what_is_not_clearly_faster_is_said_so() -> None:
    machine = Machine({1: lambda n: 1.0, 2: lambda n: 3.0 if n % 7 in (0, 1) else 0.5})
    report = bench(_candidates(1, 2), repeats=14, min_seconds=0, find=lambda _: Fake(machine), clock=machine.clock)
    assert len(report.notes) == 1
    assert "model 2 is not clearly faster than model 1 (0.50 of its time" in report.notes[0]


def test_torch_for_real_and_json() -> None:
    torch.set_num_threads(1)
    original, compiled = captured(Mixed(4).eval(), 1, 3, 8, 8), quantized(Mixed(4), 1, 3, 8, 8)
    report = bench([Candidate("real", original), Candidate("int8", compiled)], repeats=3, min_seconds=0)
    content = json.loads(json.dumps(report.to_json()))
    assert [row["candidate"] for row in content["rows"]] == ["real", "int8"]
    assert all(0 < row["p50_ms"] <= row["p90_ms"] for row in content["rows"])
    assert content["rows"][0]["ratio"] is None
    assert set(content["rows"][1]["ratio"]) == {"median", "lower", "upper"}
    assert "torch computes the integers of int8 in float32" in content["notes"]
    assert content["versions"]["torch"] == torch.__version__
    assert torch.get_num_threads() == 1


def test_the_model_is_left_as_it_is() -> None:
    program = captured(Residual())
    program.root.train()
    bench([Candidate("a", program)], repeats=1, min_seconds=0)
    assert all(module.training for module in program.root.modules())


class Profiled(Fake):
    """A backend that also times operations: always the same, of the candidate that has integers."""

    names_layers = True

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.asked: list[tuple[int, int, int | None]] = []

    def profile(self, program: Program, *, threads: int, batch: int | None = None) -> list[OpTime]:
        self.asked.append((_key(program), threads, batch))
        return [OpTime("fc", "linear", 2.0 if is_quantized(program) else 1.0, "float32")]


def _pair() -> list[Candidate]:
    return [
        Candidate("real", captured(nn.Linear(4, 2), 1, 4)),
        Candidate("int8", quantized(nn.Linear(4, 2), 1, 4)),
    ]


@pytest.mark.parametrize(("slow", "wanted", "profiles"), [(True, False, 1), (False, False, 0), (False, True, 1)])
def test_operations_are_blamed_where_int8_is_not_faster(slow: bool, wanted: bool, profiles: int) -> None:
    # One engine serves both candidates: calls alternate, A B, B A, after two calls each to warm up.
    machine = Machine({4: lambda n: 1.0})
    backend = Profiled(machine)
    turns = iter([0.5, 0.5, 0.5, 0.5] + ([1.0, 2.0, 2.0, 1.0] if slow else [2.0, 1.0, 1.0, 2.0]))
    machine.seconds[4] = lambda n: next(turns)
    report = bench(
        _pair(), repeats=2, min_seconds=0, profile=wanted, find=lambda _: backend, clock=machine.clock, batch_sizes=[3]
    )
    assert len(report.profiles) == profiles
    assert backend.asked == [(4, 1, 3)] * 2 * profiles
    for profile in report.profiles:
        assert (profile.candidate, profile.against) == ("int8", "real")
        assert "1 of 1 linear layers are computed in float32 (first fc)" in profile.blame.sentence
        assert json.loads(json.dumps(report.to_json()))["profiles"][0]["against"] == "real"


def test_simulated_integers_are_blamed_only_when_asked() -> None:
    class Simulating(Profiled):
        integers = False

    for wanted in (False, True):
        machine = Machine({4: lambda n: 1.0})
        backend = Simulating(machine)
        report = bench(
            _pair(), repeats=1, min_seconds=0, profile=wanted, find=lambda _, b=backend: b, clock=machine.clock
        )
        assert len(report.profiles) == wanted
