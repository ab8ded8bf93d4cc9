"""Composites that are opened: what comes out equals what went in, for any batch size, under the same names."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.capture import trace
from secateur.compiler.program import Program
from support.zoo import ZOO


def equal(module: nn.Module, program: Program, *shapes: tuple[int, ...]) -> None:
    """The program computes what the module does, in float64, for batches of one to three."""
    exact, captured = copy.deepcopy(module).double().eval(), copy.deepcopy(program.module).double().eval()
    for batch in (1, 2, 3):
        inputs = [torch.randn(batch, *shape[1:], dtype=torch.float64) for shape in shapes]
        with torch.no_grad():
            wanted, found = exact(*inputs), captured(*inputs)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def opaque(program: Program) -> list[str]:
    """Calls that nobody knows."""
    own = ("tests.", "support.", "test_")
    return [n.name for n in program.graph.nodes if str(getattr(n.target, "__module__", "")).startswith(own)]


ATTENTION = sorted(name for name in ZOO if "attention" in name or "window" in name or "positions" in name)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_captured_as_it_is(name: str) -> None:
    case = ZOO[name]
    module, program = case.module().eval(), case.program()
    equal(module, program, *case.inputs)
    assert set(module.state_dict()) == set(program.module.state_dict())
    assert not any(isinstance(m, nn.MultiheadAttention) for m in program.module.modules())


def changed_in_place(x: Tensor, y: Tensor, whole: bool) -> Tensor:
    """Write into an argument; the caller goes on with what it gave."""
    if whole:
        x.add_(y)
    else:
        x[:, 1:] += y[:, 1:]
    return x


torch.fx.wrap("changed_in_place")


class Caller(nn.Module):
    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.a, self.b, self.whole = nn.Linear(6, 6), nn.Linear(6, 6), whole

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        changed_in_place(y, self.b(x), self.whole)
        return y * 2


@pytest.mark.parametrize("whole", [True, False])
def test_what_a_function_does_to_its_arguments_is_kept(whole: bool) -> None:
    module = Caller(whole)
    program = trace(module, torch.zeros(2, 4, 6))
    equal(module, program, (2, 4, 6))
    assert not opaque(program)


def looks_at_types(x: Tensor) -> Tensor:
    """Insist on a real tensor."""
    if type(x) is not Tensor:
        raise TypeError
    return x * 2


torch.fx.wrap("looks_at_types")


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(looks_at_types(self.a(x)))


def test_a_function_that_takes_no_values_of_a_graph_stays_a_call() -> None:
    module = Branching()
    program = trace(module, torch.zeros(2, 6))
    assert opaque(program) == ["looks_at_types"]
    equal(module, program, (2, 6))


def by_size(x: Tensor, size: int) -> tuple[Tensor, int, list[Tensor]]:
    """Return several things, numbers among them, after branching on shapes."""
    n, c, h, w = x.shape
    if h * w > size:
        x = x[:, :, ::2, ::2]
    parts = [part.flatten(1) for part in x.chunk(2, 1)]
    zeros = x.new_zeros(c, h // 2)
    zeros[1:, 0] = 3
    return x.reshape(n * 2, c // 2, -1), h // 2, [*parts, zeros]


torch.fx.wrap("by_size")


class Sizes(nn.Module):
    def forward(self, x: Tensor) -> Any:
        y, half, (first, second, zeros) = by_size(x, 20)
        return y * half, first + second, y.mean() * zeros


def test_numbers_tuples_and_constants_come_out() -> None:
    program = trace(Sizes(), torch.zeros(2, 4, 6, 6))
    equal(Sizes(), program, (2, 4, 6, 6))
    assert not opaque(program)
    assert not program.module.state_dict()


def cleared(x: Tensor, bias: Tensor) -> Tensor:
    """Clear a third of a copy, as SwinV2 does with the bias of its keys."""
    bias = bias.clone()
    third = bias.numel() // 3
    bias[third : 2 * third].zero_()
    return x + bias


torch.fx.wrap("cleared")


class Clearing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bias = nn.Linear(6, 6, bias=False), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return cleared(self.a(x), self.bias)


def test_a_part_that_is_cleared_is_multiplied_by_zero() -> None:
    module = Clearing()
    program = trace(module, torch.zeros(2, 6))
    equal(module, program, (2, 6))
    assert not any(str(n.target).endswith("_") for n in program.graph.nodes)


def projected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Take a layer's parameters instead of the layer, as Swin does."""
    return nn.functional.linear(x, weight, bias).relu()


torch.fx.wrap("projected")


class Projecting(nn.Module):
    def __init__(self, bias: bool, given: bool) -> None:
        super().__init__()
        self.a, self.given = nn.Linear(6, 4, bias=bias), given

    def forward(self, x: Tensor) -> Tensor:
        return projected(x, self.a.weight, self.a.bias if self.given else None)


@pytest.mark.parametrize(("bias", "given", "layer"), [(True, True, True), (False, True, True), (True, False, False)])
def test_a_function_given_all_of_a_layer_calls_it(bias: bool, given: bool, layer: bool) -> None:
    module = Projecting(bias, given)
    program = trace(module, torch.zeros(2, 6))
    equal(module, program, (2, 6))
    assert any(n.op == "call_module" and n.target == "a" for n in program.graph.nodes) == layer


def test_attention_with_masks_or_extra_keys_stays_a_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(6, 2, batch_first=True, add_bias_kv=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x, x, x, need_weights=False)[0]

    module = Net()
    program = trace(module, torch.zeros(2, 3, 6))
    assert isinstance(program.owner("attn"), nn.MultiheadAttention)
    equal(module, program, (2, 3, 6))


class LoopsOverPieces(nn.Module):
    """Only values tell how often the loop runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return sum((piece.relu() for piece in self.norm(x).chunk(2, 1)), torch.zeros(()))


def test_layers_that_run_on_the_way_are_not_said_to_branch() -> None:
    module = LoopsOverPieces()
    program = trace(module, torch.zeros(2, 6))
    equal(module, program, (2, 6))
    assert program.notes == ()
