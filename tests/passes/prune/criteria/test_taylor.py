"""taylor: squared first-order effect of a channel's weights on the loss."""

import pytest
import torch
from torch import nn

from support.scores import context_of, linear, scores_at


def two_layers() -> nn.Module:
    """x -> h = (x, 2 x) -> y = 3 h0 - h1 = x, L = y^2 (one output: no classes)."""
    return nn.Sequential(linear([1.0], [2.0]), linear([3.0, -1.0]))


def test_by_hand() -> None:
    """dL/da = 2 y b x, so a dL/da = (6, -4) at x = 1 and (24, -16) at x = 2; the columns of b have the same."""
    one, two = torch.ones(1, 1), torch.full((1, 1), 2.0)
    assert scores_at(context_of(two_layers(), one), "taylor", "0") == pytest.approx([36.0, 16.0])
    both = scores_at(context_of(two_layers(), one, two), "taylor", "0")
    assert both == pytest.approx([(36.0 + 576.0) / 2, (16.0 + 256.0) / 2]), "squared batch by batch"
    together = scores_at(context_of(two_layers(), torch.cat([one, two])), "taylor", "0")
    assert together == pytest.approx([15.0**2, 10.0**2]), "within a batch the mean loss is what counts"


def test_kernels_and_positions_are_summed_before_the_square() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False), nn.Flatten(), linear([1.0, 1.0, 0.5, 0.5]))
    with torch.no_grad():
        module.get_parameter("0.weight").copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2) / 4)
    context = context_of(module, torch.ones(1, 1, 2, 3))
    # h = (1, 1, 2, 2), y = 1 + 1 + 1 + 1 = 4; row 0: sum w dL/dw = 2 y (1 + 1) = 16, row 1: 2 y (0.5 2 + 0.5 2) = 16.
    # The columns of the second layer are 8 each: every position of a channel is a slice of its own.
    assert scores_at(context, "taylor", "0") == pytest.approx([(256.0 + 64.0 + 64.0) / 3] * 2)


def test_labels_change_the_answer() -> None:
    module = nn.Sequential(linear([1.0], [1.0]), linear([1.0, 0.0], [0.0, 0.5]))
    x = torch.ones(1, 1)
    # Logits (1, 0.5). With label 1, dL/dlogits = (p, -p), p = sigmoid(0.5); with its own answer 0, (-q, q), q = 1 - p.
    p = float(torch.sigmoid(torch.tensor(0.5)))
    assert scores_at(context_of(module, (x, torch.tensor([1]))), "taylor", "0") == pytest.approx([p**2, p**2 / 4])
    assert scores_at(context_of(module, x), "taylor", "0") == pytest.approx([(1 - p) ** 2, (1 - p) ** 2 / 4])


def test_a_dead_channel_is_the_least_important() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten())
    with torch.no_grad():
        module.get_parameter("3.weight")[:, 2] = 0.0
    found = scores_at(context_of(module, torch.randn(8, 3, 5, 5)), "taylor", "0")
    assert found.index(min(found)) == 2
    assert found[2] == 0.0


def test_columns_of_groups() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(4, 4, 1, groups=2, bias=False), nn.Flatten())
    with torch.no_grad():
        module.get_parameter("0.weight").copy_(torch.eye(4)[:, :2, None, None] + torch.eye(4)[:, 2:, None, None])
        module.get_parameter("1.weight").copy_(
            torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])[..., None, None]
        )
    context = context_of(module, torch.ones(1, 2, 1, 1))
    # h = (1, 1, 1, 1), logits (h0, 0, h3, 0), whose own answer is 0: dL/dh = (p - 1, 0, 0, p).
    p = float(torch.softmax(torch.tensor([1.0, 0.0, 1.0, 0.0]), 0)[0])
    assert scores_at(context, "taylor", "0") == pytest.approx([(p - 1) ** 2, 0.0, 0.0, p**2])
