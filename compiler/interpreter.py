"""Running a program node by node, for those who look at values on the way or change them."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from .program import Program


class Interpreter(fx.Interpreter):
    """Runs a program as it stands: nothing is copied, and no module is built."""

    def __init__(self, program: Program) -> None:
        super().__init__(_Owner(program.graph), graph=program.graph)
        self.program = program

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return a parameter, a buffer or a flag."""
        return self.program.attribute(str(target))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a layer."""
        layer: Any = self.program.owner(str(target))
        return layer(*args, **kwargs)


class _Owner(nn.Module):
    """What fx.Interpreter wants of a module."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__()
        self.graph = graph
