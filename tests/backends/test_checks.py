"""The proof of a run: what each promise is held to, and that broken promises are found."""

import gc
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from secateur.backends import checks
from secateur.backends.checks import check, compose, summary
from secateur.compiler.capture import trace
from secateur.compiler.collection import no_collection
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


@pytest.mark.parametrize("piece", [1 << 22, 5])
def test_a_single_wrong_number_is_found(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_PIECE", piece)
    program = trace(net(), torch.zeros(SHAPE))
    result = PassPipeline.parse("fold-bn").run(program)
    check(program, result.steps, result.program.module)
    weight = result.program.module.get_parameter("2.weight")
    with torch.no_grad():
        weight[-1, -1] = torch.nextafter(weight[-1, -1], torch.tensor(9.0))
    with pytest.raises(ProofError, match=r"'2.weight' is not what the same pass gives"):
        check(program, result.steps, result.program.module)


def test_infinity_is_not_the_largest_number() -> None:
    module = net()
    with torch.no_grad():
        module.get_submodule("0").get_parameter("bias")[0] = torch.finfo(torch.float32).max
    program = trace(module, torch.zeros(SHAPE))
    steps = PassPipeline([Shift()]).run(program).steps
    result = steps[-1].program.module
    with torch.no_grad():
        result.get_submodule("0").get_parameter("bias")[0] = float("inf")
    with pytest.raises(ProofError, match=r"'0\.bias' is not what the same pass gives"):
        check(program, steps, result)


class Missing(nn.Module):
    """Holds a number that is not one, and does without it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = net()
        self.scale = nn.Buffer(torch.tensor([1.0, float("nan"), 2.0, 3.0]).view(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * torch.nan_to_num(self.scale)


def test_what_is_not_a_number_may_stay_so() -> None:
    program = trace(Missing().eval(), torch.zeros(SHAPE))
    result = PassPipeline.parse("fold-bn").run(program)
    (found,) = check(program, result.steps, result.program.module)
    assert found.proof is not None
    assert found.proof.holds
    result.program.module.scale = torch.tensor([1.0, 0.0, 2.0, 3.0]).view(4, 1, 1)
    with pytest.raises(ProofError, match="'scale' is not what the same pass gives"):
        check(program, result.steps, result.program.module)


@dataclass(frozen=True)
class Count(Pass):
    """Changes nothing, and counts the kernels of ``net`` that live in float64, in garbage too."""

    name: ClassVar[str] = "count"
    contract: ClassVar[Contract] = Contract.EXACT
    counts: ClassVar[list[int]] = []

    def run(self, program: Program) -> PassResult:
        found = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float64]
        self.counts.append(len({t.untyped_storage().data_ptr() for t in found if t.shape == (8, 3, 3, 3)}))
        return PassResult(Edit(program).finish(), changed=True)


def test_of_every_pass_no_more_is_held_than_what_it_is_given_in_float64() -> None:
    program = trace(net(), torch.zeros(SHAPE))
    result = PassPipeline([Shift(), Count()]).run(program)
    gc.collect()
    Count.counts.clear()
    with no_collection():
        Count().run(program)
        check(program, result.steps, result.program.module)
    before, *counts = Count.counts
    assert [count - before for count in counts] == [1, 1]  # by itself, and after the other


def test_other_tensors_than_those_of_the_pass_are_found() -> None:
    program = trace(net(), torch.zeros(SHAPE))
    steps = PassPipeline.parse("fold-bn").run(program).steps
    with pytest.raises(ProofError, match="makes other tensors"):
        check(program, steps, program.module)
