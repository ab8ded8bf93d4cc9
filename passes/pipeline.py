"""Running passes one after another, watched by instruments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ..compiler.errors import CompilerError, InternalError, OptionError
from ..compiler.options import spec_of
from ..compiler.plan import compose
from ..compiler.spec import PipelineSpec, parse
from . import catalog
from .base import Contract, Pass, PassResult, Pruned, Remark
from .instruments import Instrument, VerifyEach

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..compiler.plan import Plan
    from ..compiler.program import Program


@dataclass(frozen=True)
class Step:
    """One pass of a run: what it was, what it got and made, and what it said."""

    pass_: Pass
    before: Program
    program: Program
    changed: bool
    stats: Mapping[str, int | float]
    remarks: tuple[Remark, ...]
    plan: Plan | None
    record: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The pass with its options, as canonical pipeline text."""
        return str(spec_of(self.pass_))


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline made of a program."""

    program: Program
    steps: tuple[Step, ...]
    """In the order run."""

    @property
    def changed(self) -> bool:
        """Whether any pass changed the program."""
        return any(step.changed for step in self.steps)

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """All remarks, in the order made."""
        return tuple(remark for step in self.steps for remark in step.remarks)


class PassPipeline:
    """A list of passes. ``str()`` is its canonical text, in which presets are expanded and defaults left out."""

    def __init__(self, passes: Iterable[Pass]) -> None:
        self.passes = tuple(passes)

    @staticmethod
    def parse(text: str) -> PassPipeline:
        """Read pipeline text.

        Raises:
            PipelineSyntaxError: It cannot be read.
            OptionError: It names a pass, preset or option that does not exist, or a malformed value.
        """
        return PassPipeline(catalog.build(parse(text)))

    def __str__(self) -> str:
        """Return the canonical text."""
        return str(PipelineSpec(tuple(map(spec_of, self.passes))))

    def run(self, program: Program, instruments: Sequence[Instrument] = (), *, verify: bool = True) -> PipelineResult:
        """Run the passes in order.

        Args:
            program: Stays as it is.
            instruments: What watches the run.
            verify: Check every pass's result (a ``VerifyEach`` around the other instruments).

        Raises:
            CompilerError: A pass cannot do what it was asked to do.
            InternalError: A pass failed in any other way, or broke its promises.
        """
        watching: list[Instrument] = [VerifyEach(), *instruments] if verify else list(instruments)
        steps: list[Step] = []
        for pass_ in self.passes:
            result = _run_watched(_comparing(pass_, steps), program, watching)
            steps.append(
                Step(
                    pass_,
                    program,
                    result.program,
                    result.changed,
                    result.stats,
                    result.remarks,
                    result.plan,
                    result.record,
                )
            )
            program = result.program
        return PipelineResult(program, tuple(steps))


def _comparing(pass_: Pass, steps: Sequence[Step]) -> Pass:
    """Hand a pass that repairs what pruning broke the dense program and the plan.

    The dense program is the one before the passes that removed channels, as far back as nothing else stands between:
    another pass would have changed what the two programs have in common.

    Raises:
        OptionError: No such pass stands before this one.
    """
    if not _compares(pass_) or getattr(pass_, "pruned", None) is not None:
        return pass_
    stretch: list[Step] = []
    for step in reversed(steps):
        if step.changed and step.pass_.contract is not Contract.MASKED and not _compares(step.pass_):
            break
        stretch.append(step)
    while stretch and stretch[-1].pass_.contract is not Contract.MASKED:
        stretch.pop()
    if not stretch:
        between = next((step.text for step in reversed(steps) if step.changed), "")
        raise OptionError(
            f"{pass_.name} must stand right after prune: it compares with the program before pruning",
            where=f"{between},{spec_of(pass_)}" if between else str(spec_of(pass_)),
            hint=f"prune{{macs=0.5}},{pass_.name}, and other passes behind them",
        )
    dense = stretch[-1].before
    shapes = {name: tuple(tensor.shape) for name, tensor in dense.tensors()}
    given: dict[str, Any] = {"pruned": Pruned(dense, compose((step.plan for step in reversed(stretch)), shapes))}
    return replace(pass_, **given)


def _compares(pass_: Pass) -> bool:
    return any(field.name == "pruned" for field in fields(pass_))


def _run_watched(pass_: Pass, program: Program, instruments: Sequence[Instrument]) -> PassResult:
    for instrument in instruments:
        instrument.before(pass_, program)
    try:
        result = pass_.run(program)
    except CompilerError:
        raise
    except Exception as error:
        raise InternalError(f"pass '{spec_of(pass_)}' failed: {type(error).__name__}: {error}") from error
    for instrument in reversed(instruments):
        instrument.after(pass_, program, result)
    return result
