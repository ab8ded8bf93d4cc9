"""Removing what no output depends on."""

import torch
from torch import nn

from secateur.compiler.capture import trace
from secateur.compiler.program import Program
from secateur.compiler.shapes import infer
from secateur.passes.eliminate_dead_code import EliminateDeadCode
from secateur.passes.pipeline import PassPipeline


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.a(x)
        return y, self.b(y)


def first_head(program: Program) -> Program:
    (output,) = (n for n in program.graph.nodes if n.op == "output")
    output.args = (output.args[0][0],)
    infer(program)
    return program


def test_an_unread_head_goes_with_its_layer() -> None:
    program = first_head(trace(TwoHeads(), torch.zeros(2, 3)))
    result = PassPipeline([EliminateDeadCode()]).run(program)
    assert result.changed
    assert [name for name, _ in result.program.tensors()] == ["a.weight", "a.bias"]
    assert dict(result.steps[0].stats) == {"nodes": 1}


def test_captured_programs_have_none() -> None:
    program = trace(TwoHeads(), torch.zeros(2, 3))
    result = PassPipeline([EliminateDeadCode()]).run(program)
    assert result.program is program
