"""``eliminate-dead-code``: nodes whose result nobody reads go, and the layers and tensors that only they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.program import Program
from .base import Contract, Pass, PassResult
from .edit import Edit


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Remove what no output depends on. Capture and the other passes leave none; hand-made programs may."""

    name: ClassVar[str] = "eliminate-dead-code"
    contract: ClassVar[Contract] = Contract.EXACT

    def run(self, program: Program) -> PassResult:
        """Remove; see :class:`~.base.Pass`."""
        finished = Edit(program).finish()
        removed = len(program.graph.nodes) - len(finished.graph.nodes)
        stats = {"nodes": removed}
        return PassResult(finished if removed else program, changed=removed > 0, stats=stats)
