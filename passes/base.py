"""What a pass is: a frozen dataclass whose fields are its options, and ``run(program) -> PassResult``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from ..compiler.plan import Plan
from ..compiler.program import Program


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


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a program. Options are the fields; ``name`` is what pipeline text calls it."""

    name: ClassVar[str]

    @abstractmethod
    def run(self, program: Program) -> PassResult:
        """Return the rewritten program; the one given stays as it is."""
