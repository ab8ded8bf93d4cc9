"""Running pipelines: results, order, and what happens when a pass misbehaves."""

from dataclasses import dataclass, field

import pytest

from secateur.compiler.errors import BudgetError, InternalError, OptionError, PipelineSyntaxError
from secateur.compiler.program import Program
from secateur.passes.base import Pass, PassResult
from secateur.passes.catalog import PASSES, Entry
from secateur.passes.pipeline import PassPipeline
from support.passes import AppendRelu, Misbehave, Nothing, tiny_program


@dataclass
class Recorder:
    label: str
    log: list[str] = field(default_factory=list[str])

    def before(self, pass_: Pass, program: Program) -> None:
        self.log.append(f"{self.label} before {pass_.name}")

    def after(self, pass_: Pass, before: Program, result: PassResult) -> None:
        self.log.append(f"{self.label} after {pass_.name}")


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


def test_what_a_broken_pass_did_is_seen_before_verification_objects() -> None:
    log: list[str] = []
    with pytest.raises(InternalError):
        PassPipeline([Misbehave("lie")]).run(tiny_program(), [Recorder("x", log)])
    assert log == ["x before misbehave", "x after misbehave"]
