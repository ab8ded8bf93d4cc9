"""Running a program node by node."""

import pytest
import torch
from torch import Tensor, fx, nn

from secateur.compiler.capture import trace
from secateur.compiler.errors import CompilerError
from secateur.compiler.program import Program
from secateur.passes.compensate.stepwise import Stepwise
from support.small import Residual


def node(program: Program, name: str) -> fx.Node:
    return next(n for n in program.graph.nodes if n.name == name)


def batches(*shape: int, count: int = 2) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=generator),) for _ in range(count)]


def test_gives_what_the_module_gives_in_evaluation() -> None:
    module = Residual().train()
    program = trace(module, torch.zeros(1, 3, 8, 8))
    data = batches(3, 3, 8, 8)
    found = Stepwise(program, data, [node(program, "output")]).take(node(program, "output"))
    assert module.training
    assert module.bn.training
    with torch.no_grad():
        wanted = [module.eval()(x) for (x,) in data]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        z = y.relu_() * 2
        return z.add_(y)


def test_what_is_overwritten_can_still_be_taken() -> None:
    program = trace(InPlace(), torch.zeros(2, 3))
    data = batches(2, 3)
    steps = Stepwise(program, data, [node(program, "add"), node(program, "add_"), node(program, "output")])
    last = steps.take(node(program, "output"))
    assert torch.equal(last[0], InPlace()(data[0][0].clone()))
    assert torch.equal(steps.take(node(program, "add"))[0], data[0][0] + 1)


def test_layers_that_overwrite_are_told_not_to_and_stay_as_they_are() -> None:
    relu = nn.ReLU(inplace=True)
    program = trace(nn.Sequential(nn.Linear(3, 3), relu), torch.zeros(2, 3))
    first, second = (n for n in program.graph.nodes if n.op == "call_module")
    data = batches(2, 3)
    steps = Stepwise(program, data, [first, second])
    positive = steps.take(second)
    assert all(torch.equal(a.relu(), b) for a, b in zip(steps.take(first), positive, strict=True))
    assert relu.inplace


def test_every_node_runs_once_and_is_announced_right_before() -> None:
    said: list[str] = []
    program = trace(Residual().eval(), torch.zeros(1, 3, 8, 8))
    wanted = [node(program, "back"), node(program, "output")]
    steps = Stepwise(program, batches(2, 3, 8, 8), wanted, lambda n: said.append(n.name))
    steps.take(wanted[0])
    assert said[-1] == "back"
    steps.take(wanted[1])
    assert said == [n.name for n in program.graph.nodes]


def test_a_layer_may_be_replaced_until_it_runs() -> None:
    program = trace(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.zeros(1, 2))
    first, second = (n for n in program.graph.nodes if n.op == "call_module")
    data = batches(1, 2, count=1)

    def prepare(n: fx.Node) -> None:
        if n is second:
            with torch.no_grad():
                program.owner("1").bias.fill_(5.0)  # pyright: ignore
                program.owner("1").weight.zero_()  # pyright: ignore

    steps = Stepwise(program, data, [first, second], prepare)
    assert not torch.equal(steps.take(first)[0], torch.full((1, 2), 5.0))
    assert torch.equal(steps.take(second)[0], torch.full((1, 2), 5.0))


def test_values_are_dropped_when_nobody_wants_them() -> None:
    program = trace(Residual().eval(), torch.zeros(1, 3, 8, 8))
    output = node(program, "output")
    steps = Stepwise(program, batches(2, 3, 8, 8), [output, output])
    steps.take(output)
    assert list(steps._values) == [output]
    steps.take(output)
    assert not steps._values


def test_memory_that_has_two_names_is_refused() -> None:
    class Aliased(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y[:, :1].mul_(3.0)
            return y.relu()

    program = trace(Aliased(), torch.zeros(1, 4))
    outputs = [node(program, "output"), *(n for n in program.graph.nodes if n.name.startswith("mul_"))]
    with pytest.raises(CompilerError, match="overwrites a tensor that it reads under another name"):
        Stepwise(program, batches(1, 4), outputs)
