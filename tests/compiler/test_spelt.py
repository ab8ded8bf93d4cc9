"""Functions of torch that are others put together: the same numbers, and channels that may go."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.compiler.capture import trace
from secateur.compiler.spelt import SPELT, explicit


class Applied(nn.Module):
    """A function between convolutions."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.function = function
        self.last = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def standardised(x: Tensor) -> Tensor:
    var, mean = torch.var_mean(x, (2, 3), keepdim=True, unbiased=False)
    return (x - mean) / (var + 1e-3).sqrt()


def deviations(x: Tensor) -> Tensor:
    std, mean = torch.std_mean(x, dim=(2, 3), keepdim=True)
    return (x - mean) * std


def side_by_side(x: Tensor) -> Tensor:
    return torch.hstack([x, x.relu()])


def above(x: Tensor) -> Tensor:
    return torch.vstack((x, -x)).relu()


def added(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    scores = torch.baddbmm(flat, flat @ flat.transpose(1, 2), flat, alpha=0.5)
    return scores.reshape(x.shape)


def dotted(x: Tensor) -> Tensor:
    return torch.tensordot(x, torch.ones(6, 5, dtype=x.dtype), dims=1)


@pytest.mark.parametrize(
    ("function", "width"),
    [(standardised, 8), (deviations, 8), (side_by_side, 16), (above, 8), (added, 8), (dotted, 8)],
)
def test_the_same_numbers_without_the_function(function: Callable[[Tensor], Tensor], width: int) -> None:
    torch.manual_seed(0)
    module = Applied(function, width).double().eval()
    program = trace(module, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    assert not [node for node in program.graph.nodes if node.target in SPELT]
    for batch in (2, 3):
        x = torch.rand(batch, 3, 8, 8, dtype=torch.float64)
        assert torch.allclose(program.module(x), module(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("function", [standardised, deviations, dotted])
def test_channels_go_through_it(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    compiled = secateur.compile(Applied(function, 8).eval(), torch.zeros(1, 3, 8, 8), pipeline="prune{ratio=0.5}")
    assert compiled.module.get_parameter("first.weight").shape[0] == 4
    assert compiled.report["verification"]["holds"]


def test_products_with_a_sum() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 8)
            self.weight = nn.Parameter(torch.rand(8, 3))
            self.bias = nn.Parameter(torch.rand(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, self.body(x), self.weight, beta=2)

    torch.manual_seed(0)
    module = Head().eval()
    compiled = secateur.compile(module, torch.zeros(1, 6), pipeline="prune{ratio=0.5}")
    assert tuple(compiled.module.get_parameter("weight").shape) == (4, 3)
    assert compiled.report["verification"]["holds"]


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("...c,cd->...d", [(2, 3, 4), (4, 5)]),
        ("...c,cd", [(2, 3, 4), (4, 5)]),
        ("b...c, b...d -> b...cd", [(2, 3, 4), (2, 3, 5)]),
        ("ij,jk", [(2, 3), (3, 4)]),
        ("ba,ca", [(2, 3), (4, 3)]),
        ("...ij,...jk->...ik", [(3, 2, 3), (5, 3, 3, 4)]),
        ("i,i->", [(3,), (3,)]),
    ],
)
def test_equations_with_all_their_letters(equation: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
    full = explicit(equation, [len(shape) for shape in shapes])
    assert "." not in full
    assert "->" in full
    assert torch.equal(torch.einsum(full, *operands), torch.einsum(equation, *operands))


@pytest.mark.parametrize("equation", ["...c,dc->...d", "...c,dc"])
def test_einsum_with_dots_is_pruned(equation: str) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 8)
            self.weight = nn.Parameter(torch.rand(5, 8))

        def forward(self, x: Tensor) -> Any:
            return torch.einsum(equation, self.body(x), self.weight)

    torch.manual_seed(0)
    compiled = secateur.compile(Mixed().eval(), torch.zeros(1, 7, 6), pipeline="prune{ratio=0.5}")
    assert tuple(compiled.module.get_parameter("weight").shape) == (5, 4)
    assert compiled.report["verification"]["holds"]
