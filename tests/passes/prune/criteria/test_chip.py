"""chip: the nuclear norm of the feature maps that goes with a channel."""

import numpy as np
import pytest
import torch
from torch import nn

from secateur.passes.prune.criteria.base import Scores
from secateur.passes.prune.criteria.chip import independence
from support.scores import context_of, linear, scores_at


def by_deletion(maps: Scores) -> list[float]:
    """Straight from the definition."""
    whole = np.linalg.norm(maps, "nuc")
    return [float(whole - np.linalg.norm(np.delete(maps, c, axis=0), "nuc")) for c in range(len(maps))]


def test_by_hand() -> None:
    assert independence(np.array([[9.0]])) == pytest.approx([3.0])
    orthogonal = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert independence(orthogonal @ orthogonal.T) == pytest.approx([3.0, 4.0])
    copies = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert independence(copies @ copies.T) == pytest.approx([2**0.5 - 1, 2**0.5 - 1, 1.0])


@pytest.mark.parametrize("shape", [(6, 40), (12, 5)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_one_decomposition_does_for_all_deletions(shape: tuple[int, int], scale: float) -> None:
    """Also with fewer samples than channels, where the Gram matrix is singular."""
    maps = scale * np.random.default_rng(0).normal(size=shape) * np.linspace(0.01, 3.0, shape[0])[:, None]
    maps[3] = maps[2]
    expected = by_deletion(maps)
    assert independence(maps @ maps.T) == pytest.approx(expected, rel=1e-6, abs=1e-6 * max(expected))


def test_no_signal_at_all() -> None:
    assert independence(np.zeros((3, 3))).tolist() == [0.0, 0.0, 0.0]


def test_a_net_by_hand() -> None:
    """h = (3, 0), (0, 4) over two samples; scores do not grow with their number."""
    module = nn.Sequential(linear([3.0, 0.0], [0.0, 4.0]), linear([1.0, 1.0]))
    expected = pytest.approx([3 / 2**0.5, 4 / 2**0.5])
    assert scores_at(context_of(module, torch.eye(2)), "chip", "0") == expected
    assert scores_at(context_of(module, torch.eye(2), torch.eye(2)), "chip", "0") == expected


def test_a_flattened_map_is_one_map() -> None:
    module = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Flatten(), linear([1.0] * 6))
    with torch.no_grad():
        module.get_parameter("0.weight").copy_(torch.tensor([1.0, 1.0, 2.0]).view(3, 1, 1, 1))
    x = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    expected = by_deletion(np.outer([1.0, 1.0, 2.0], [3.0, 4.0]) / 2**0.5)
    assert scores_at(context_of(module, x), "chip", "0") == pytest.approx(expected, rel=1e-6)


def test_a_copy_is_less_important_than_its_equals() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 1, 1))
    with torch.no_grad():
        weight, bias = module.get_parameter("0.weight"), module.get_parameter("0.bias")
        weight /= weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        weight[4], bias[4] = weight[1], bias[1]
        bias += 1.0
    found = np.array(scores_at(context_of(module, torch.randn(4, 3, 8, 8)), "chip", "0"))
    assert set(found.argsort()[:2].tolist()) == {1, 4}
