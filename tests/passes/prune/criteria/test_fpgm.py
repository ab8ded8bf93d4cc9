"""fpgm: mean distance from the layer's other filters."""

import numpy as np
import pytest
import torch
from torch import nn

from secateur.compiler.dependency import ParamSlice, Role
from support.scores import context_of, linear, score, scores_at

FILTERS = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
"""Distances 5 between the second and each of the others, which are the same."""


def use(axis: int = 0, kind: str = "conv") -> ParamSlice:
    """A use of FILTERS' three filters."""
    return ParamSlice("a.weight", axis, np.arange(3), Role.PRODUCES, "a", kind)


def test_by_hand() -> None:
    assert score("fpgm", FILTERS, use()) == pytest.approx([2.5, 5.0, 2.5])
    assert score("fpgm", FILTERS[:, :, None, None].expand(3, 2, 2, 2), use()) == pytest.approx([5.0, 10.0, 5.0])


def test_filters_of_a_transposed_convolution_and_an_embedding() -> None:
    assert score("fpgm", FILTERS.T, use(1, kind="conv_transpose")) == pytest.approx([2.5, 5.0, 2.5])
    assert score("fpgm", FILTERS.T, use(1, kind="embedding")) == pytest.approx([2.5, 5.0, 2.5])


def test_what_says_nothing() -> None:
    assert score("fpgm", FILTERS[:1], use()) is None, "one filter has no others"
    assert score("fpgm", FILTERS[:, 0], use(kind="batch_norm")) is None


def test_a_duplicate_is_the_least_important() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        module.get_parameter("0.weight")[5] = module.get_parameter("0.weight")[1]
    found = np.array(scores_at(context_of(module, torch.zeros(1, 3, 8, 8)), "fpgm", "0"))
    assert set(found.argsort()[:2].tolist()) == {1, 5}


def test_filters_of_a_group_are_compared_among_themselves() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 1, 1))
    with torch.no_grad():
        rows = torch.tensor([[1.0, 0.0], [4.0, 4.0], [0.0, 0.0], [6.0, 8.0]])
        module.get_parameter("1.weight").copy_(rows[..., None, None])
    assert scores_at(context_of(module, torch.zeros(1, 2, 2, 2)), "fpgm", "1") == pytest.approx([5.0, 5.0, 10.0, 10.0])


def test_transposed_filters_of_a_group() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, 1, groups=2), nn.Conv2d(4, 1, 1))
    with torch.no_grad():  # [I, O/g]: the filters of a group are the columns of its rows
        columns = torch.tensor([[1.0, 4.0], [0.0, 4.0], [0.0, 6.0], [0.0, 8.0]])
        module.get_parameter("1.weight").copy_(columns[..., None, None])
    found = scores_at(context_of(module, torch.zeros(1, 2, 2, 2)), "fpgm", "1", axis=1)
    assert found == pytest.approx([5.0, 5.0, 10.0, 10.0])


def test_of_depthwise_filters_nothing_is_said() -> None:
    """Channels are scored by the layer before; the depthwise filters have no others to be compared with."""
    module = nn.Sequential(linear_conv(), nn.Conv2d(3, 3, 3, groups=3, padding=1), nn.Conv2d(3, 1, 1))
    assert scores_at(context_of(module, torch.zeros(1, 2, 4, 4)), "fpgm", "0") == pytest.approx([2.5, 5.0, 2.5])


def linear_conv() -> nn.Conv2d:
    layer = nn.Conv2d(2, 3, 1)
    with torch.no_grad():
        layer.weight.copy_(linear(*FILTERS.tolist()).weight[..., None, None])
    return layer
