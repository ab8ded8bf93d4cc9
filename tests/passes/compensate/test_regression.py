"""Ridge regression towards given weights."""

import pytest
import torch
from torch import Tensor

from secateur.passes.compensate.regression import HELD_OUT, RIDGES, Regression, product


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("samples", [15, 200])
def test_solves_the_stated_problem(samples: int) -> None:
    """The gradient of the objective vanishes at the solution, by J equations and by n."""
    inputs, start, target = normal(samples, 2, 40) + 3.0, normal(2, 3, 40, seed=1), normal(samples, 2, 3, seed=2)
    regression = Regression(inputs, start, target)
    fit = regression.fit(target)
    weight, bias = fit.weight.clone().requires_grad_(), fit.bias.clone().requires_grad_()
    centred = inputs - inputs.mean(0)
    typical = centred.square().mean((0, 2))  # [g]
    error = (torch.einsum("ngj,goj->ngo", inputs, weight) + bias - target).square().sum() / samples
    held = regression.ridge * (typical[:, None, None] * (weight - start).square()).sum()
    (error + held).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight.grad), rtol=0.0, atol=1e-9)
    torch.testing.assert_close(bias.grad, torch.zeros_like(bias.grad), rtol=0.0, atol=1e-9)


def test_finds_what_made_the_target() -> None:
    inputs, made, start = normal(300, 1, 10), normal(1, 4, 10, seed=1), torch.zeros(1, 4, 10)
    target = product(inputs, made) + 1.0
    regression = Regression(inputs, start, target)
    fit = regression.fit(target)
    assert regression.ridge == RIDGES[0]
    torch.testing.assert_close(fit.weight, made, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fit.bias, torch.ones(1, 4, dtype=torch.float64), rtol=1e-3, atol=1e-4)


def test_noise_is_not_fitted() -> None:
    """Targets that the inputs say nothing about: what is held out tells, and the weights stay near the start."""
    inputs, start, noise = normal(60, 1, 40), torch.zeros(1, 1, 40), normal(60, 1, 1, seed=5)
    assert Regression(inputs, start, noise).ridge == RIDGES[-1]


def test_directions_without_data_keep_their_weights() -> None:
    inputs = torch.cat([normal(100, 1, 3), torch.zeros(100, 1, 2)], 2)
    start, target = normal(1, 2, 5, seed=1), normal(100, 1, 2, seed=2)
    fit = Regression(inputs, start, target).fit(target)
    torch.testing.assert_close(fit.weight[..., 3:], start[..., 3:])


def test_few_samples_are_all_fitted() -> None:
    inputs, start, target = normal(HELD_OUT - 1, 1, 3), torch.zeros(1, 1, 3), normal(HELD_OUT - 1, 1, 1, seed=1)
    assert Regression(inputs, start, target).ridge == RIDGES[1]
