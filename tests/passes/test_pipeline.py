"""Running pipelines: results, order, and what happens when a pass misbehaves."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest

from secateur.compiler.errors import BudgetError, InternalError, OptionError, PipelineSyntaxError
from secateur.compiler.program import Program
from secateur.passes.base import Contract, Pass, PassResult, Pruned
from secateur.passes.catalog import PASSES, Entry
from secateur.passes.fold_bn import FoldBN
from secateur.passes.pipeline import PassPipeline, Step
from secateur.passes.prune.prune import Prune
from support.passes import AppendRelu, Misbehave, Nothing, tiny_program
from support.small import Residual, captured


@dataclass
class Recorder:
    label: str
    log: list[str] = field(default_factory=list[str])

    def before(self, pass_: Pass, program: Program) -> None:
        self.log.append(f"{self.label} before {pass_.name}")

    def after(self, pass_: Pass, before: Program, result: PassResult) -> None:
        self.log.append(f"{self.label} after {pass_.name}")


@dataclass(frozen=True)
class Compare(Pass):
    """Notes what it is given to compare with."""

    name: ClassVar[str] = "compare"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    seen: ClassVar[list[Pruned]] = []

    changes: bool = False
    pruned: Pruned | None = field(default=None, compare=False, repr=False, metadata={"text": False})

    def run(self, program: Program) -> PassResult:
        assert self.pruned is not None
        Compare.seen[:] = [self.pruned]
        return PassResult(trace_again(program) if self.changes else program, changed=self.changes)


def trace_again(program: Program) -> Program:
    """The same program, made anew."""
    return replace(program, notes=(*program.notes, "compared"))


@pytest.fixture
def nothing_seen() -> None:
    Compare.seen.clear()


def relus(program: Program) -> int:
    return sum(node.name.startswith("relu") for node in program.graph.nodes)


def test_passes_run_in_order_and_their_words_are_collected() -> None:
    program = tiny_program()
    result = PassPipeline([AppendRelu(), Nothing(), AppendRelu(times=2)]).run(program)
    assert (relus(program), relus(result.program)) == (1, 4)
    assert [step.text for step in result.steps] == ["append-relu", "nothing", "append-relu{times=2}"]
    assert [step.changed for step in result.steps] == [True, False, True]
    assert [dict(step.stats) for step in result.steps] == [{"relus": 1}, {}, {"relus": 2}]
    assert [remark.reason for remark in result.remarks] == ["appended 1", "appended 2"]
    assert [step.plan is not None for step in result.steps] == [True, False, True]
    assert result.changed


def test_a_pipeline_without_effect_returns_its_input() -> None:
    program = tiny_program()
    result = PassPipeline([Nothing()]).run(program)
    assert result.program is program
    assert not result.changed


def test_text_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASSES, "append-relu", Entry("support.passes:AppendRelu", "append a relu"))
    pipeline = PassPipeline.parse("append-relu{times=1}, append-relu{ times=3 }")
    assert pipeline.passes == (AppendRelu(), AppendRelu(times=3))
    assert str(pipeline) == "append-relu,append-relu{times=3}"
    with pytest.raises(OptionError, match="there is no pass 'unheard-of'"):
        PassPipeline.parse("unheard-of")
    with pytest.raises(PipelineSyntaxError):
        PassPipeline.parse("append-relu{")


def test_instruments_enclose_one_another() -> None:
    log: list[str] = []
    PassPipeline([Nothing()]).run(tiny_program(), [Recorder("outer", log), Recorder("inner", log)])
    assert log == [
        "outer before nothing",
        "inner before nothing",
        "inner after nothing",
        "outer after nothing",
    ]


def test_the_users_errors_pass_through() -> None:
    with pytest.raises(BudgetError, match="no"):
        PassPipeline([Misbehave("refuse")]).run(tiny_program())


def test_any_other_error_is_ours_and_names_the_pass() -> None:
    with pytest.raises(InternalError, match="pass 'misbehave' failed: KeyError: 'conv9'") as caught:
        PassPipeline([Nothing(), Misbehave()]).run(tiny_program())
    assert isinstance(caught.value.__cause__, KeyError)


def test_verification_is_on_by_default_and_can_be_left_out() -> None:
    pipeline = PassPipeline([Misbehave("lie")])
    with pytest.raises(InternalError, match="misbehave"):
        pipeline.run(tiny_program())
    assert relus(pipeline.run(tiny_program(), verify=False).program) == 2


def compared(passes: list[Pass]) -> tuple[Program, list[Step], Pruned]:
    """What the last pass was given to compare with."""
    program = captured(Residual())
    result = PassPipeline(passes).run(program)
    (seen,) = Compare.seen
    return program, list(result.steps), seen


@pytest.mark.usefixtures("nothing_seen")
def test_a_pass_that_repairs_gets_the_dense_program_and_the_plan() -> None:
    program, steps, seen = compared([Prune(ratio=0.25), Prune(ratio=0.5), Compare()])
    assert seen.dense is program
    width = len(program.attribute("inner.weight"))
    assert len(seen.plan.kept["inner.weight"][0]) == len(steps[1].program.attribute("inner.weight")) < width
    assert steps[2].text == "compare"


@pytest.mark.usefixtures("nothing_seen")
def test_repairs_and_passes_without_effect_may_stand_between() -> None:
    passes: list[Pass] = [FoldBN(), Nothing(), Prune(ratio=0.25), Nothing(), Compare(changes=True), Compare()]
    program, steps, seen = compared(passes)
    assert seen.dense is steps[2].before
    assert seen.dense is not program
    assert steps[4].changed


@pytest.mark.usefixtures("nothing_seen")
@pytest.mark.parametrize("passes", [[], [FoldBN()], [Prune(ratio=0.25), FoldBN()]])
def test_a_repair_must_stand_right_behind_prune(passes: list[Pass]) -> None:
    with pytest.raises(OptionError, match=r"compare must stand right after prune"):
        PassPipeline([*passes, Compare()]).run(captured(Residual()))


def test_what_a_broken_pass_did_is_seen_before_verification_objects() -> None:
    log: list[str] = []
    with pytest.raises(InternalError):
        PassPipeline([Misbehave("lie")]).run(tiny_program(), [Recorder("x", log)])
    assert log == ["x before misbehave", "x after misbehave"]
