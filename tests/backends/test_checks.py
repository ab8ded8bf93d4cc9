"""The proof of a run: what each promise is held to, and that broken promises are found."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from secateur.backends.checks import check, compose, summary
from secateur.compiler.capture import trace
from secateur.compiler.errors import ProofError
from secateur.compiler.program import Program
from secateur.passes.base import Contract, Pass, PassResult
from secateur.passes.edit import Edit
from secateur.passes.pipeline import PassPipeline
from support.exact import lively

SHAPE = (1, 3, 8, 8)
PIPELINE = "prune{ratio=0.5},prune{layers=2:0.5},eliminate-identity,fold-bn,quantize{observer=minmax}"


def net() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Dropout()]
    return lively(nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(8, 4, 1)))


@dataclass(frozen=True)
class Shift(Pass):
    """Adds to a bias: as much as it likes, in the precision that it likes."""

    name: ClassVar[str] = "shift"
    contract: ClassVar[Contract] = Contract.EXACT
    by: float = 0.0
    sloppy: bool = False

    def run(self, program: Program) -> PassResult:
        edit = Edit(program)
        layer = edit.program.owner("0")
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        bias = layer.bias.detach().double() + self.by
        if self.sloppy and layer.bias.dtype == torch.float32:
            bias = bias + 1e-6
        edit.set_parameters("0", {"bias": bias})
        return PassResult(edit.finish(), changed=True)


def run(*passes: Pass) -> None:
    program = trace(net(), torch.zeros(SHAPE))
    result = PassPipeline(passes).run(program)
    check(program, result.steps, result.program.module)


def test_passes_that_promise_the_same_are_checked_together() -> None:
    program = trace(net(), torch.zeros(SHAPE))
    result = PassPipeline.parse(PIPELINE).run(program)
    found = check(program, result.steps, result.program.module)
    assert [(c.contract.value, len(c.passes)) for c in found] == [("masked", 2), ("exact", 2), ("approximate", 1)]
    told = summary(found)
    assert told["holds"]
    assert 0 < told["error"] < 1e-12
    assert [s["contract"] for s in told["stretches"]] == ["masked", "exact", "approximate"]
    assert told["stretches"][2]["measured"]["int8_macs"] == 1.0
    assert compose(program, result.steps).kept["2.weight"][0]


def test_nothing_changed_is_proven_too() -> None:
    program = trace(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), torch.zeros(SHAPE))
    (found,) = check(program, [], program.module)
    assert found.contract is Contract.EXACT
    assert found.proof is not None
    assert found.proof.error == 0.0


def test_an_honest_pass_passes() -> None:
    run(Shift())


def test_a_pass_that_changes_the_function_is_found() -> None:
    with pytest.raises(ProofError, match="differs from the masked original"):
        run(Shift(by=1e-3))


def test_a_pass_that_does_not_round_once_is_found() -> None:
    with pytest.raises(
        ProofError, match=r"shift\{sloppy\}: '0.bias' is not what the same pass gives in float64, rounded"
    ):
        run(Shift(sloppy=True))


def test_a_result_that_is_not_what_the_passes_made_is_found() -> None:
    program = trace(net(), torch.zeros(SHAPE))
    result = PassPipeline.parse("fold-bn").run(program)
    with torch.no_grad():
        result.program.module.get_submodule("2").get_parameter("weight").mul_(1 + 1e-6)
    with pytest.raises(ProofError, match=r"'2.weight' is not what the same pass gives"):
        check(program, result.steps, result.program.module)


def test_other_tensors_than_those_of_the_pass_are_found() -> None:
    program = trace(net(), torch.zeros(SHAPE))
    steps = PassPipeline.parse("fold-bn").run(program).steps
    with pytest.raises(ProofError, match="makes other tensors"):
        check(program, steps, program.module)
