"""Every criterion in the pass: proofs hold, the program is left alone, and options say what is missing."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secateur.compiler.capture import trace
from secateur.compiler.errors import OptionError, SourceError
from secateur.compiler.options import spec_of
from secateur.passes.pipeline import PassPipeline
from secateur.passes.prune.criteria import CRITERIA, criterion
from secateur.passes.prune.prune import Prune
from support.pruning import kept_of, plan_of, program_of, prune
from support.scores import linear
from support.zoo import ZOO

CASES = (
    "plain",
    "residual",
    "batch_norm",
    "tied_weights",
    "called_twice",
    "depthwise_with_multiplier",
    "grouped_then_other_groups",
    "transposed_grouped",
    "flatten_to_linear",
    "linear_over_tokens",
    "embedding_to_linear",
    "functional_weights",
    "shuffle_unit",
    "in_place",
)
WITH_DATA = [name for name in CRITERIA if criterion(name).needs_data]


def batches(name: str) -> list[tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    return [ZOO[name].examples(batch=3) for _ in range(2)]


@pytest.mark.parametrize("name", CRITERIA)
def test_what_is_left_is_proven(name: str) -> None:
    for case in CASES:
        program = program_of(case)
        before = {key: value.clone() for key, value in program.module.state_dict().items()}
        flags = [part.training for part in program.root.modules()]
        result, _ = prune(program, ratio=0.5, criterion=name, data=batches(case))
        assert result.changed, case
        assert all(torch.equal(value, before[key]) for key, value in program.module.state_dict().items()), case
        assert all(parameter.grad is None for parameter in program.module.parameters()), case
        assert [part.training for part in program.root.modules()] == flags, case


@pytest.mark.parametrize("name", WITH_DATA)
def test_the_same_data_give_the_same_plan(name: str) -> None:
    data = batches("residual")
    first, again = (Prune(ratio=0.5, criterion=name, data=data).run(program_of("residual")) for _ in range(2))
    assert plan_of(first) == plan_of(again)


# Noise, norms that this net lacks, and distances, in which zero may lie further from the others than they do.
@pytest.mark.parametrize("name", [name for name in CRITERIA if name not in ("random", "bn-scale", "fpgm")])
def test_a_dead_channel_goes_first(name: str) -> None:
    """Channel 2 of either layer makes nothing and is read by nothing."""
    torch.manual_seed(2)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    with torch.no_grad():
        for layer in ("0", "2"):
            module.get_parameter(f"{layer}.weight")[2] = 0.0
            module.get_parameter(f"{layer}.bias")[2] = 0.0
        module.get_parameter("2.weight")[:, 2] = 0.0
        module.get_parameter("5.weight")[:, 8:12] = 0.0
    data = [torch.randn(8, 3, 6, 6) for _ in range(2)]
    result, _ = prune(trace(module, data[0]), ratio=0.2, criterion=name, data=data)
    assert kept_of(result, "0.weight") == [0, 1, 3, 4, 5]
    assert kept_of(result, "2.weight") == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("text", ["aggregate=sum", "aggregate=product normalize=lamp", "normalize=isomorphic"])
def test_options_are_written_as_they_are_read(text: str) -> None:
    (found,) = PassPipeline.parse(f"prune{{ratio=0.5 {text}}}").passes
    assert str(spec_of(found)) == f"prune{{ratio=0.5 {text}}}"
    assert found.run(program_of("residual")).changed


def test_aggregation_changes_what_goes() -> None:
    """Rows (3), (2) and columns (1), (3): the means are 2 and 2.5, the largest 3 and 3, so the first of them stays."""
    module = nn.Sequential(linear([3.0], [2.0]), linear([1.0, 3.0]))
    program = trace(module, torch.zeros(1, 1))
    assert kept_of(Prune(ratio=0.5, criterion="l1").run(program), "0.weight") == [1]
    assert kept_of(Prune(ratio=0.5, criterion="l1", aggregate="max").run(program), "0.weight") == [0]


@pytest.mark.parametrize("name", WITH_DATA)
def test_without_data_it_is_said_what_to_give(name: str) -> None:
    with pytest.raises(OptionError, match=rf"criterion '{name}' scores channels by what they do on data") as caught:
        Prune(ratio=0.5, criterion=name).run(program_of("plain"))
    assert "--data" in str(caught.value)


@pytest.mark.parametrize("name", WITH_DATA)
def test_data_that_are_none(name: str) -> None:
    with pytest.raises(SourceError, match="there are no calibration data"):
        Prune(ratio=0.5, criterion=name, data=[]).run(program_of("plain"))


def test_data_are_not_read_without_need() -> None:
    def data() -> Any:
        raise AssertionError("read")
        yield

    assert not Prune(ratio=0.5).calibrates
    assert Prune(ratio=0.5, criterion="taylor").calibrates
    assert Prune(ratio=0.5, data=data()).run(program_of("plain")).changed


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"macs": 0.5, "scope": "knapsack", "select": "all"}])
def test_what_went_is_on_record_and_needs_no_data_again(options: dict[str, Any]) -> None:
    first = Prune(criterion="taylor", data=batches("residual"), **options).run(program_of("residual"))
    again = Prune(criterion="taylor", **options).recall(json.loads(json.dumps(first.record)))
    assert not again.calibrates
    second = again.run(program_of("residual"))
    assert first.plan is not None
    assert second.plan is not None
    assert second.plan.to_json() == first.plan.to_json()
    assert str(second.program.graph) == str(first.program.graph)


def test_a_criterion_that_says_nothing_is_told() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)).eval()
    told = [r.reason for r in Prune(ratio=0.5).run(trace(module, torch.zeros(1, 3, 4, 4))).remarks]
    assert not any("tells no channel from another" in reason for reason in told)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    told = [r.reason for r in Prune(ratio=0.5).run(trace(module, torch.zeros(1, 3, 4, 4))).remarks]
    assert "criterion 'l2' tells no channel from another: they go from the last to the first" in told


def test_progress_reaches_the_criterion() -> None:
    told: list[str] = []
    Prune(ratio=0.5, criterion="fisher", data=batches("plain"), progress=told.append).run(program_of("plain"))
    assert "taking gradients: batch 2 of 2" in told


def test_data_and_progress_are_no_part_of_the_text() -> None:
    assert str(spec_of(Prune(ratio=0.5, criterion="apoz", data=[torch.zeros(1)]))) == "prune{ratio=0.5 criterion=apoz}"


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_do_not_depend_on_gradient_mode(name: str) -> None:
    data = batches("residual")
    first = Prune(ratio=0.5, criterion=name, data=data).run(program_of("residual"))
    with torch.inference_mode():
        second = Prune(ratio=0.5, criterion=name, data=data).run(program_of("residual"))
    assert plan_of(first) == plan_of(second)
    assert np.isfinite(float(first.stats["removed"]))
