"""Sizes that follow the batch, spread over arguments."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.capture import trace
from secateur.compiler.spread_sizes import spread_sizes

Make = Callable[[Tensor, Any, Any, Any], Tensor]
MADE: dict[str, Make] = {
    "zeros": lambda x, b, h, w: torch.zeros(b, 1, h, w),
    "ones": lambda x, b, h, w: torch.ones(b, 1, h, w, dtype=x.dtype),
    "expand": lambda x, b, h, w: torch.linspace(0, 1, 8).view(1, 1, 1, 8).expand(b, 1, h, w),
    "repeat": lambda x, b, h, w: torch.linspace(0, 1, 8).view(1, 1, 8, 1).repeat(b, 1, 1, w),
    "new_ones": lambda x, b, h, w: torch.zeros(1).new_ones(b, 1, h, w),
    "in a tuple": lambda x, b, h, w: torch.zeros((b, 1, h, w)),
    "all but one": lambda x, b, h, w: torch.arange(8.0).expand(b, 1, h, -1),
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
    before = torch.zeros, torch.Tensor.expand, set(vars(torch.Tensor))
    with spread_sizes():
        assert torch.zeros is not before[0]
        assert torch.zeros(2, 3).expand(4, 2, 3).shape == (4, 2, 3)
    assert (torch.zeros, torch.Tensor.expand, set(vars(torch.Tensor))) == before
