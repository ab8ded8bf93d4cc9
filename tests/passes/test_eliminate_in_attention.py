"""Channels of attention go where they are zero: queries with keys, and values, in every spelling."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.eliminating import eliminate
from support.pruning import plan_of


class Attention(nn.Module):
    """Two heads of four channels over the positions of an image."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.out = nn.Conv2d(3, 6, 1), nn.Linear(8, 4)
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.spelling == "attention":
            y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        elif self.spelling == "cosine":
            y = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1) @ v
        elif self.spelling == "matmul":
            y = (0.5 * q @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            scores = torch.einsum("bhid,bhjd->bhij", 0.5 * q, k)
            y = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
        return self.out(y.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def zero(self, layer: str, *rows: int, bias: float = 0.0) -> None:
        self.get_parameter(f"{layer}.weight")[list(rows)] = 0.0
        self.get_parameter(f"{layer}.bias")[list(rows)] = bias


SPELLINGS = ["attention", "matmul", "einsum"]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("layer", ["q", "k"])
def test_queries_and_keys_go_where_one_of_them_is_zero(spelling: str, layer: str) -> None:
    """Every head keeps as many: of three zeros, one in the first head and two in the second, two can go."""
    net = Attention(spelling)
    net.zero(layer, 1, 5, 6)
    kept = plan_of(eliminate(net)).kept
    assert len(kept["q.weight"][0]) == 6
    assert kept["q.weight"] == kept["k.weight"]
    assert 1 not in kept["q.weight"][0]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_channel_that_scores_are_summed_over_takes_no_other_constant(spelling: str) -> None:
    net = Attention(spelling)
    net.zero("q", 1, 5, bias=0.5)
    result = eliminate(net)
    assert not result.changed
    net.zero("k", 1, 5)
    assert plan_of(eliminate(net)).kept["q.weight"] == {0: [0, 2, 3, 4, 6, 7]}


def test_queries_of_unit_length_go_where_keys_are_zero_too() -> None:
    """Else the length of the other would change."""
    net = Attention("cosine")
    net.zero("q", 1, 5)
    assert not eliminate(net).changed
    net.zero("k", 1, 5)
    assert plan_of(eliminate(net)).kept["k.weight"] == {0: [0, 2, 3, 4, 6, 7]}


@pytest.mark.parametrize("spelling", [*SPELLINGS, "cosine"])
def test_values_go_where_they_are_zero_or_unread(spelling: str) -> None:
    net = Attention(spelling)
    net.zero("v", 0, 4)
    with torch.no_grad():
        net.out.weight[:, [3, 7]] = 0.0
    kept = plan_of(eliminate(net)).kept
    assert kept["v.weight"] == {0: [1, 2, 5, 6]}
    assert kept["out.weight"] == {1: [1, 2, 5, 6]}
    assert "q.weight" not in kept
