"""Programs are timed in the form in which they are deployed, and profiles are kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import secateur
from secateur.backends import inputs, stopwatch
from secateur.backends.engines.op_times import OpTime
from secateur.backends.engines.torch_eager import TorchEager
from secateur.backends.stopwatch import DeployedStopwatch
from secateur.backends.verify import verify
from secateur.compiler.errors import OptionError
from secateur.compiler.program import Program
from secateur.passes.pipeline import PassPipeline
from secateur.passes.quantize.quantize import Quantize
from support.small import Residual, captured


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """Programs that torch was asked to profile; a layer takes a millisecond per weight, everything else half of one."""
    seen: list[Program] = []
    monkeypatch.setattr(stopwatch, "ROUNDS", 3)
    monkeypatch.setattr(stopwatch, "MIN_SECONDS", 0.0)

    def profile(self: TorchEager, program: Program, *, threads: int, batch: int | None = None) -> list[OpTime]:
        seen.append(program)
        sizes = {name.removesuffix(".weight"): float(tensor.numel()) for name, tensor in program.tensors()}
        nodes = [node for node in program.graph.nodes if node.op.startswith("call_")]
        return [OpTime(str(node.target), "any", sizes.get(str(node.target), 0.5), "float32") for node in nodes]

    monkeypatch.setattr(TorchEager, "profile", profile)
    return seen


def test_the_passes_behind_run_before_the_clock(calls: list[Program]) -> None:
    passes = PassPipeline.parse("eliminate-identity,fold-bn,quantize{observer=mse}").passes
    watch = DeployedStopwatch("torch", 1, 1, behind=passes)
    profile = watch.profile(captured(Residual()))
    weights = {"stem": 216, "inner": 432, "back": 432, "fc": 40}
    assert profile.layers == pytest.approx({layer: 1e-3 * elements for layer, elements in weights.items()})
    assert profile.rest > 0
    assert "bn" not in {str(node.target) for node in calls[0].graph.nodes}
    assert any("int8" in str(t.dtype) for _, t in calls[0].tensors())


def test_a_profile_is_measured_once(calls: list[Program]) -> None:
    first = DeployedStopwatch("torch", 1, 1).profile(captured(Residual()))
    again = DeployedStopwatch("torch", 1, 1).profile(captured(Residual()))
    assert (again, len(calls)) == (first, 1)
    DeployedStopwatch("torch", 1, 2).profile(captured(Residual()))
    assert len(calls) == 2


def test_a_damaged_cache_is_measured_again(calls: list[Program], tmp_path: Path) -> None:
    first = DeployedStopwatch("torch", 1, 1).profile(captured(Residual()))
    (file,) = (tmp_path / "cache" / "latency").iterdir()
    file.write_text("{")
    assert DeployedStopwatch("torch", 1, 1).profile(captured(Residual())) == first
    assert len(calls) == 2


def test_a_draft_of_quantize_is_quick() -> None:
    draft = Quantize(observer="kl", rounding="adaround", max_drop=0.1, activations="int8").draft()
    assert draft == Quantize(observer="minmax", bias_correction="none", activations="int8")


def test_an_engine_without_a_profile_is_refused() -> None:
    with pytest.raises(OptionError, match="inductor does not say where the time goes"):
        DeployedStopwatch("inductor", 1, 1).profile(captured(Residual()))


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("prunable", [True, False])
def test_an_artefact_pruned_for_time_is_verified_without_a_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prunable: bool
) -> None:
    def compare(self: DeployedStopwatch, programs: Sequence[Program]) -> npt.NDArray[np.float64]:
        seconds = [sum(tensor.numel() for _, tensor in program.tensors()) for program in programs]
        return np.array([seconds] * 3, dtype=np.float64)

    monkeypatch.setattr(DeployedStopwatch, "compare", compare)
    digits = inputs.load("digits")
    text = f"prune{{latency={0.8 if prunable else 1} engine=torch scope=knapsack}},fold-bn"
    made = secateur.compile(digits.module, digits.example_inputs(), pipeline=text, source=digits.spec)
    assert bool(made.report["passes"][0]["record"]["removed"]) is prunable
    made.save(tmp_path / "made")

    def no_clock(*args: object, **options: object) -> None:
        raise AssertionError("a verification measures nothing")

    monkeypatch.setattr(DeployedStopwatch, "__init__", no_clock)
    assert verify(tmp_path / "made").tensors
