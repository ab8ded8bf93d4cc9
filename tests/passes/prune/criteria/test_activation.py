"""apoz and mean-activation: statistics of what is read."""

import pytest
import torch
from torch import nn

from support.scores import context_of, linear, scores_at

DATA = [torch.tensor([[1.0], [2.0]]), torch.tensor([[-1.0]])]


def rectified() -> nn.Module:
    """Channel 0 is relu(x) = 1, 2, 0; channel 1 is relu(-x) = 0, 0, 1."""
    return nn.Sequential(linear([1.0], [-1.0]), nn.ReLU(), linear([1.0, 1.0]))


def test_by_hand() -> None:
    context = context_of(rectified(), *DATA)
    assert scores_at(context, "apoz", "0") == pytest.approx([2 / 3, 1 / 3])
    assert scores_at(context, "mean-activation", "0") == pytest.approx([1.0, 1 / 3])


def test_the_sign_does_not_count() -> None:
    context = context_of(nn.Sequential(linear([1.0], [-3.0]), linear([1.0, 1.0])), *DATA)
    assert scores_at(context, "mean-activation", "0") == pytest.approx([4 / 3, 4.0])
    assert scores_at(context, "apoz", "0") == [1.0, 1.0], "no zeros without a rectifier"


def test_positions_count_like_samples() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        module.get_parameter("0.weight").copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    context = context_of(module, torch.tensor([1.0, 2.0, -1.0, 4.0]).view(1, 1, 2, 2))
    assert scores_at(context, "apoz", "0") == [0.75, 0.25]
    assert scores_at(context, "mean-activation", "0") == [1.75, 0.25]


def test_a_flattened_map_counts_with_all_its_positions() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), linear([1.0] * 4))
    with torch.no_grad():
        module.get_parameter("0.weight").copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    context = context_of(module, torch.tensor([3.0, -1.0]).view(1, 1, 1, 2))
    assert scores_at(context, "apoz", "0") == [0.5, 0.5]
    assert scores_at(context, "mean-activation", "0") == [1.5, 0.5]


@pytest.mark.parametrize("name", ["apoz", "mean-activation"])
def test_a_dead_channel_is_the_least_important(name: str) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)
    )
    with torch.no_grad():
        module.get_parameter("3.weight")[2] = 0.0  # dead behind the depthwise convolution
        module.get_parameter("3.bias")[2] = 0.0
    found = scores_at(context_of(module, torch.randn(8, 3, 8, 8)), name, "0")
    assert found.index(min(found)) == 2
    assert found[2] == 0.0
