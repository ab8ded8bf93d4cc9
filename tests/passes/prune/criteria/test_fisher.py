"""fisher: half the mean squared gradient of a channel's mask."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.scores import context_of, linear, scores_at


def test_by_hand() -> None:
    """y = 3 h0 - h1 = x with h = (x, 2 x), L = y^2: h dL/dh = (6, -4) at x = 1 and (24, -16) at x = 2."""
    module = nn.Sequential(linear([1.0], [2.0]), linear([3.0, -1.0]))
    expected = [(36.0 + 576.0) / 4, (16.0 + 256.0) / 4]
    one, two = torch.ones(1, 1), torch.full((1, 1), 2.0)
    assert scores_at(context_of(module, torch.cat([one, two])), "fisher", "0") == pytest.approx(expected)
    assert scores_at(context_of(module, one, two), "fisher", "0") == pytest.approx(expected), "however batched"


class Coupled(nn.Module):
    """Two layers read what one layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = linear([1.0], [1.0]), linear([1.0, 1.0]), linear([1.0, -1.0])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.a(x) + 0.5 * self.b(x)


def test_readers_are_summed_before_the_square() -> None:
    """h = (1, 1), y = 2 + 0: channel 0 has 2 y (1 + 0.5) = 6, channel 1 has 2 y (1 - 0.5) = 2."""
    assert scores_at(context_of(Coupled(), torch.ones(1, 1)), "fisher", "stem") == pytest.approx([18.0, 2.0])


def test_positions_of_a_flattened_map_are_summed_before_the_square() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), linear([1.0, -1.0, 1.0, 1.0]))
    with torch.no_grad():
        module.get_parameter("0.weight").fill_(1.0)
    # h = (1, 1 | 1, 1), y = 2; channel 0: 2 y (1 - 1) = 0, channel 1: 2 y (1 + 1) = 8.
    assert scores_at(context_of(module, torch.ones(1, 1, 1, 2)), "fisher", "0") == pytest.approx([0.0, 32.0])


def test_a_channel_that_nobody_reads_with_a_weight_is_the_least_important() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.Flatten())
    with torch.no_grad():
        module.get_parameter("2.weight")[3:, 1] = 0.0  # the second group's second input: channel 4
    found = scores_at(context_of(module, torch.randn(8, 3, 5, 5)), "fisher", "0")
    assert found.index(min(found)) == 4
    assert found[4] == 0.0


def test_of_the_models_output_nothing_is_said() -> None:
    found = scores_at(context_of(Coupled(), torch.ones(1, 1)), "fisher", "a")
    assert np.isnan(found).all()


class Twice(nn.Module):
    """The same two layers on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linear([1.0], [1.0]), linear([1.0, -0.5])

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + self.b(self.a(2 * x))


def test_shared_layers_are_summed_over_their_calls() -> None:
    """y = 0.5 + 1 = 1.5: channel 0 has 2 y (1 + 2) = 9, channel 1 has half of it."""
    assert scores_at(context_of(Twice(), torch.ones(1, 1)), "fisher", "a") == pytest.approx([40.5, 10.125])
