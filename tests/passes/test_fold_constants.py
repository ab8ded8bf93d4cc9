"""Computing once what depends on no input."""

import torch
import torch.nn.functional as F
from torch import nn

from secateur.passes.fold_constants import FoldConstants
from support.exact import missed, names, run_exact


class Standardised(nn.Module):
    """A convolution whose weight is standardised at every call."""

    gain: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.register_buffer("gain", torch.rand(4, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) * self.gain)


class Grows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale.expand(1, 4, 200, 200).cumsum(3)


class Random(Grows):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.dropout(self.scale, training=self.training)


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_a_weight_is_computed_once() -> None:
    result = run_exact(Standardised(), (1, 3, 8, 8), FoldConstants())
    assert names(result) == ["x", "folded_0", "conv2d", "output"]
    assert result.program.attribute("folded_0").dtype == torch.float32


class Chained(Grows):
    """One constant is read by what follows the input, and by another constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.scale * 2
        return x * first + (first + 1).sqrt()


def test_constants_of_constants() -> None:
    result = run_exact(Chained(), (1, 4, 8, 8), FoldConstants())
    assert names(result) == ["x", "folded_0", "mul_1", "folded_1", "add_1", "output"]


def test_what_grows_is_left_with_a_reason() -> None:
    result = run_exact(Grows(), (1, 4, 200, 200), FoldConstants())
    assert not result.changed
    assert "larger than what it is computed from" in missed(result)["cumsum"]


def test_what_is_random_is_left() -> None:
    assert not run_exact(Random(), (1, 4, 8, 8), FoldConstants()).changed


def test_nothing_to_do() -> None:
    assert not run_exact(Nothing(), (1, 4, 8, 8), FoldConstants()).changed
