"""What a pass is: a frozen dataclass whose fields are its options, and ``run(program) -> PassResult``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Self

from ..compiler.plan import Plan
from ..compiler.program import Program


class Contract(Enum):
    """What a pass promises about the numbers that its result computes, and how the promise is checked.

    * ``MASKED``: those of its input program in which the removed channels contribute nothing (``compiler.proof``);
    * ``EXACT``: those of its input program, in evaluation mode and real arithmetic. Such a pass computes in float64 and
      rounds once, so that running it on the program in float64 shows its algebra, and rounding that its result;
    * ``APPROXIMATE``: others; how far they are off is measured and reported.
    """

    MASKED = "masked"
    EXACT = "exact"
    APPROXIMATE = "approximate"


class RemarkKind(Enum):
    """Whether something was done, was refused, or is worth knowing."""

    APPLIED = "applied"
    MISSED = "missed"
    NOTE = "note"


@dataclass(frozen=True)
class Remark:
    """What a pass did or refused, where, and why, in words for the user."""

    kind: RemarkKind
    pass_name: str
    node: str
    """Layer path or node name; empty when the remark is about the whole program."""
    reason: str


@dataclass(frozen=True)
class PassResult:
    """What a pass returns."""

    program: Program
    changed: bool
    stats: Mapping[str, int | float] = field(default_factory=dict[str, "int | float"])
    remarks: tuple[Remark, ...] = ()
    plan: Plan | None = None
    """Set by passes that remove channels: what they kept of their input program."""
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the result depends on besides program and options (measured times), as JSON: see :meth:`Pass.recall`."""


@dataclass(frozen=True, eq=False)
class Pruned:
    """What a pass that repairs pruning compares with.

    A pass that has a field ``pruned: Pruned | None`` gets it from the pipeline right before it runs.
    """

    dense: Program
    """The program before the first of the passes that removed channels."""
    plan: Plan
    """What they kept of it."""


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a program. Options are the fields; ``name`` is what pipeline text calls it."""

    name: ClassVar[str]
    contract: ClassVar[Contract] = Contract.EXACT

    @abstractmethod
    def run(self, program: Program) -> PassResult:
        """Return the rewritten program; the one given stays as it is."""

    def recall(self, record: Mapping[str, Any]) -> Self:
        """Return the pass with its choices taken from a result's record, so that it makes the same again."""
        del record
        return self

    def draft(self) -> Self | None:
        """Return a pass that is quick to run and whose result is as fast as this one's, whatever its numbers.

        ``None`` if a program is as fast without it. Used where only the speed of a pipeline's result is asked for.
        """
        return self
