"""Small passes and a small program, for tests of the pass framework."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx, nn

from secateur.compiler.errors import BudgetError
from secateur.compiler.plan import Plan
from secateur.compiler.program import InputSpec, Program
from secateur.passes.base import Pass, PassResult, Remark, RemarkKind


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x))


def tiny_program() -> Program:
    root = Tiny()
    return Program(fx.symbolic_trace(root).graph, root, (InputSpec("x", (1, 3, 4, 4)),), name="Tiny")


def copy_graph(program: Program) -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    return graph


def add_relu(graph: fx.Graph) -> None:
    (output,) = (node for node in graph.nodes if node.op == "output")
    result = output.args[0]
    assert isinstance(result, fx.Node)
    with graph.inserting_before(output):
        output.args = (graph.call_function(torch.relu, (result,)),)


@dataclass(frozen=True)
class AppendRelu(Pass):
    """Changes the graph as a pass should."""

    name: ClassVar[str] = "append-relu"
    times: int = 1

    def run(self, program: Program) -> PassResult:
        graph = copy_graph(program)
        for _ in range(self.times):
            add_relu(graph)
        changed = Program(graph, program.root, program.inputs, program.name)
        remark = Remark(RemarkKind.APPLIED, self.name, "relu", f"appended {self.times}")
        return PassResult(changed, changed=True, stats={"relus": self.times}, remarks=(remark,), plan=Plan())


@dataclass(frozen=True)
class Nothing(Pass):
    """Changes nothing, and says so."""

    name: ClassVar[str] = "nothing"
    times: int = 1

    def run(self, program: Program) -> PassResult:
        return PassResult(program, changed=False)


@dataclass(frozen=True)
class Misbehave(Pass):
    """Breaks the promise named by ``how``."""

    name: ClassVar[str] = "misbehave"
    how: str = "raise"

    def run(self, program: Program) -> PassResult:
        if self.how == "refuse":
            raise BudgetError("no")
        if self.how == "in-place":
            add_relu(program.graph)
            return PassResult(program, changed=True)
        if self.how == "lie":
            return PassResult(AppendRelu().run(program).program, changed=False)
        if self.how == "break":
            graph = copy_graph(program)
            next(node for node in graph.nodes if node.op == "call_module").target = "absent"
            return PassResult(Program(graph, program.root, program.inputs), changed=True)
        raise KeyError("conv9")
