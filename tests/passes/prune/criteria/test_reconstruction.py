"""reconstruction: what a channel's removal costs once its readers are refitted."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.passes.prune.criteria import moments
from secateur.passes.prune.criteria.base import Context
from secateur.passes.prune.criteria.reconstruction import RIDGE, Reconstruction
from support.pruning import prune
from support.scores import context_of, linear, scores_at


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def identity(last: nn.Module, width: int = 3) -> nn.Sequential:
    """A layer that hands its inputs on, and one that reads them."""
    return nn.Sequential(linear(*torch.eye(width).tolist()), last)


def scores(context: Context, layer: str = "0") -> list[float]:
    return scores_at(context, "reconstruction", layer)


def test_one_output_by_hand() -> None:
    """y = 3 h0 + h1 with independent inputs of variance v: one channel costs w^2 v / 2, the loss being y^2 / 2."""
    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [1.0, -2.0], [-1.0, -2.0]])
    found = scores(context_of(identity(linear([3.0, 1.0]), 2), x))
    assert found == pytest.approx([9.0 * 1.0 / 2, 1.0 * 4.0 / 2], rel=1e-2)


def test_what_others_can_say_costs_nothing_but_only_once() -> None:
    """h1 = 2 h0: either may go, and then not the other; a constant channel costs nothing."""
    x = normal(200, 1) * torch.tensor([[1.0, 2.0, 0.0]]) + torch.tensor([[0.0, 0.0, 5.0]])
    x = torch.cat([x, normal(200, 1, seed=1)], 1)
    low = sorted(scores(context_of(identity(linear([1.0, 1.0, 1.0, 1.0]), 4), x)))
    assert low[1] < 0.02
    assert low[2] > 0.3


def refitted_loss(x: Tensor, weight: Tensor, gone: list[int]) -> float:
    """Half the squared error of the best linear fit, with bias, of W x by what is left of x, by least squares."""
    kept = [i for i in range(x.shape[1]) if i not in gone]
    design = torch.cat([x[:, kept], torch.ones(len(x), 1)], 1).double()
    wanted = (x @ weight.T).double()
    left = wanted - design @ torch.linalg.lstsq(design, wanted).solution
    return 0.5 * float(left.square().sum() / len(x))


def test_the_scores_of_what_goes_add_up_to_the_loss_of_refitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of three axes have no classes, so the loss is half the squared error, and G the identity in the mean."""
    monkeypatch.setattr("secateur.passes.prune.criteria.reconstruction.RIDGE", 1e-9)
    x = normal(400, 5) @ normal(5, 5, seed=1)
    weight = normal(4, 5, seed=2)
    module = nn.Sequential(linear(*torch.eye(5).tolist()), linear(*weight.tolist()), nn.Unflatten(1, (2, 2)))
    monkeypatch.setattr(moments, "_signs", _each_in_turn)
    found = np.array(scores(context_of(module, x)))
    order = np.argsort(found, kind="stable").tolist()
    for count in (1, 2, 3):
        expected = refitted_loss(x, weight, order[:count])
        assert found[order[:count]].sum() == pytest.approx(expected, rel=1e-4)


def _each_in_turn(like: Tensor, generator: torch.Generator) -> Tensor:
    """One output per sample, in turn, of length 2: exact, where random signs are right in the mean."""
    del generator
    return 2.0 * torch.eye(4)[torch.arange(len(like)) % 4].reshape(like.shape)


def test_readers_of_a_group_are_summed() -> None:
    class Coupled(nn.Module):
        def __init__(self, *parts: nn.Module) -> None:
            super().__init__()
            self.stem, self.parts = linear([1.0, 0.0], [0.0, 1.0]), nn.ModuleList(parts)

        def forward(self, x: Tensor) -> list[Tensor]:
            x = self.stem(x)
            return [part(x)[:, None] for part in self.parts]

    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    one, two = linear([1.0, 2.0]), linear([3.0, 0.5])
    alone = [scores(context_of(Coupled(part), x), "stem") for part in (one, two)]
    assert scores(context_of(Coupled(one, two), x), "stem") == pytest.approx(np.sum(alone, axis=0), rel=1e-2)


LAYERS: dict[str, tuple[list[nn.Module], int]] = {
    "conv": ([nn.Conv2d(8, 4, 3, padding=1)], 8),
    "grouped": ([nn.Conv2d(8, 4, 3, groups=2)], 8),
    "linear behind a flattened map": ([nn.Flatten(), nn.Linear(8 * 16, 4)], 8),
    "depthwise, then conv": ([nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)], 8),
}


def with_planted(layers: list[nn.Module]) -> nn.Sequential:
    """Channels 5 and 6 are dead, and 7 is a copy of 0."""
    torch.manual_seed(0)
    first = nn.Conv2d(16, 8, 1)
    with torch.no_grad():
        first.weight[5:7] = 0.0
        first.weight[7] = first.weight[0]
        assert first.bias is not None
        first.bias[5:7] = 0.0
        first.bias[7] = first.bias[0]
    for layer in layers:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()  # pyright: ignore
    return nn.Sequential(first, nn.ReLU(), *layers, nn.Flatten())


@pytest.mark.parametrize("name", ["conv", "linear behind a flattened map"])
@pytest.mark.parametrize("widest", [moments.WIDEST, 4])
def test_dead_and_double_channels_are_the_cheapest(name: str, widest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "WIDEST", widest)
    found = scores(context_of(with_planted(LAYERS[name][0]), normal(300, 16, 4, 4)))
    order = np.argsort(found, kind="stable").tolist()
    assert set(order[:2]) == {5, 6}
    assert order[2] in (0, 7)
    assert found[order[2]] < 0.1 * found[order[3]]


@pytest.mark.parametrize(("images", "columns"), [(18, 72), (17, 8)])
def test_of_few_samples_only_channels_are_looked_at(images: int, columns: int) -> None:
    """A kernel of 3 x 3 over 8 channels has 72 inputs, and an output of 2 x 2 four positions."""
    context = context_of(with_planted([nn.Conv2d(8, 3, 3)]), normal(images, 16, 4, 4))
    (found,) = (one for one in moments.moments(context) if one.call.owner == "2")
    assert found.inputs.shape == (1, columns, columns)


@pytest.mark.parametrize("name", LAYERS)
def test_pruning_by_it_is_proven(name: str) -> None:
    module = with_planted(LAYERS[name][0])
    data = [normal(16, 16, 4, 4, seed=s) for s in range(2)]
    program = context_of(module, data[0]).program
    for scope in ("uniform", "knapsack"):
        prune(program, criterion="reconstruction", data=data, scope=scope, macs=0.6)


def test_wide_groups_lose_several_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(with_planted(LAYERS["conv"][0]), normal(300, 16, 4, 4))
    one_by_one = scores(context)
    monkeypatch.setattr("secateur.passes.prune.criteria.reconstruction.STEPS", 4)
    found = scores(context)
    assert found != one_by_one
    assert set(np.argsort(found, kind="stable").tolist()[:2]) == {5, 6}


def test_channels_that_stay_and_the_order_of_costs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x)
            return self.b(y[:, :3]), y[:, 3:]

    found = np.array(scores(context_of(Net(), normal(8, 3, 4, 4)), "a"))
    assert np.isnan(found[3:]).all() or (found[3:] >= np.nanmax(found[:3])).all()
    assert Reconstruction.needs_data
    assert Reconstruction.estimates_loss
    assert 0 < RIDGE < 1


def test_the_users_module_is_left_alone() -> None:
    module: Any = with_planted(LAYERS["conv"][0]).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    context = context_of(module, normal(8, 16, 4, 4))
    module.train()
    first, second = (Reconstruction().score(context) for _ in range(2))
    assert np.array_equal(first, second, equal_nan=True)
    assert module.training
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
