"""Sizes that follow the batch, and types of values: spread over arguments, as lengths, and asked for their limits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.accepting import accepting_values
from secateur.compiler.capture import trace
from secateur.compiler.errors import UntraceableError

Make = Callable[[Tensor, Any, Any, Any], Tensor]
MADE: dict[str, Make] = {
    "zeros": lambda x, b, h, w: torch.zeros(b, 1, h, w),
    "ones": lambda x, b, h, w: torch.ones(b, 1, h, w, dtype=x.dtype),
    "expand": lambda x, b, h, w: torch.linspace(0, 1, 8).view(1, 1, 1, 8).expand(b, 1, h, w),
    "repeat": lambda x, b, h, w: torch.linspace(0, 1, 8).view(1, 1, 8, 1).repeat(b, 1, 1, w),
    "new_ones": lambda x, b, h, w: torch.zeros(1).new_ones(b, 1, h, w),
    "in a tuple": lambda x, b, h, w: torch.zeros((b, 1, h, w)),
    "all but one": lambda x, b, h, w: torch.arange(8.0).expand(b, 1, h, -1),
    "length": lambda x, b, h, w: torch.ones(len(x), 1, h, w),
    "length of parts": lambda x, b, h, w: x.chunk(3, 1)[len(x.chunk(3, 1)) - 1],
    "limits": lambda x, b, h, w: torch.full((b, 1, h, w), torch.finfo(x.dtype).max / 1e38 if h > 2 else 0.0),
}


class Positions(nn.Module):
    """More channels, which follow from the sizes of the others."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.conv, self.make = nn.Conv2d(4, 2, 1), make

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        return self.conv(torch.cat([x, self.make(x, b, h, w)], 1))


@pytest.mark.parametrize("name", MADE)
def test_a_model_that_makes_tensors_of_its_batch_size_is_captured(name: str) -> None:
    model = Positions(MADE[name]).eval()
    module = trace(model, torch.zeros(1, 3, 8, 8)).module
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(x), model(x))


def test_torch_is_left_as_it_was() -> None:
    before = torch.zeros, torch.finfo, len, torch.Tensor.expand, set(vars(torch.Tensor))
    with accepting_values():
        assert torch.zeros is not before[0]
        assert torch.finfo().bits == torch.finfo(torch.float32).bits == 32
        assert len([1, 2]) == 2
        assert torch.zeros(2, 3).expand(4, 2, 3).shape == (4, 2, 3)
    assert (torch.zeros, torch.finfo, len, torch.Tensor.expand, set(vars(torch.Tensor))) == before


class Single(nn.Module):
    """One image at a time."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[place].mean((1, 2)) for place in range(len(x))])


def test_what_python_cannot_do_without_is_told_by_the_line_that_needs_it() -> None:
    with pytest.raises(UntraceableError) as caught:
        trace(Single().eval(), torch.zeros(2, 3, 8, 8))
    assert "a number that follows the batch" in caught.value.what
    assert "test_accepting.py" in str(caught.value.where)
    assert "for place in range(len(x))" in str(caught.value.where)
