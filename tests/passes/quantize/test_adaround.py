"""Learned rounding: better outputs than rounding to nearest gives, from integers next to the weights."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.passes.quantize.adaround import Operation, adaround
from secateur.passes.quantize.weights import quantize_weight

LIMIT = 7
STEPS = 200


def correlated(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return inputs whose channels are mixtures of a third as many sources, [N, C, ...], as behind a ReLU."""
    mixture = torch.randn(shape[1], shape[1] // 3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(shape[0], shape[1] // 3, *shape[2:], generator=generator)
    return torch.einsum("cs,ns...->nc...", mixture, sources).relu()


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, stride=2, groups=len(weight))


CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], Operation]] = {
    "linear": ((96, 24), (10, 24), F.linear),
    "conv": ((32, 12, 6, 6), (8, 12, 3, 3), convolve),
    "depthwise": ((32, 12, 7, 7), (12, 1, 3, 3), depthwise),
}


def drawn(name: str) -> tuple[Tensor, Tensor, Tensor, Operation]:
    """Return weight, scale, calibration inputs and operation of a case."""
    shape, kernel, operation = CASES[name]
    weight = torch.randn(kernel, generator=torch.Generator().manual_seed(5))
    return weight, quantize_weight(weight, LIMIT)[1], correlated(shape, seed=1), operation


def widen(integers: Tensor, scale: Tensor) -> Tensor:
    return integers.float() * scale.reshape(-1, *[1] * (integers.ndim - 1))


def error(weight: Tensor, integers: Tensor, scale: Tensor, x: Tensor, operation: Operation) -> float:
    return float((operation(x, weight) - operation(x, widen(integers, scale))).square().mean())


@pytest.mark.parametrize("name", CASES)
def test_fresh_inputs_are_reconstructed_better_than_by_rounding_to_nearest(name: str) -> None:
    weight, scale, inputs, operation = drawn(name)
    integers = adaround(weight, scale, LIMIT, inputs, operation, steps=STEPS)
    nearest, _ = quantize_weight(weight, LIMIT)
    fresh = correlated(tuple(inputs.shape), seed=2)
    learned, usual = (error(weight, q, scale, fresh, operation) for q in (integers, nearest))
    assert learned < 0.8 * usual
    assert integers.dtype == torch.int8
    assert integers.shape == weight.shape
    assert int(integers.abs().max()) <= LIMIT
    off = integers.double() - weight.double() / scale.double().reshape(-1, *[1] * (weight.ndim - 1))
    assert float(off.abs().max()) < 1.0


def test_the_seed_decides_and_the_weight_stays() -> None:
    weight, scale, inputs, operation = drawn("linear")
    before = weight.clone()
    torch.manual_seed(1)
    one = adaround(weight, scale, LIMIT, inputs, operation, steps=STEPS, seed=4)
    torch.manual_seed(2)
    assert torch.equal(one, adaround(weight, scale, LIMIT, inputs, operation, steps=STEPS, seed=4))
    assert not torch.equal(one, adaround(weight, scale, LIMIT, inputs, operation, steps=STEPS, seed=5))
    assert torch.equal(weight, before)


def test_starts_from_the_float_weight_which_rounds_to_nearest() -> None:
    weight, scale, inputs, operation = drawn("conv")
    learning: list[Tensor] = []

    def watched(x: Tensor, given: Tensor) -> Tensor:
        learning.extend([given.detach().clone()] if given.requires_grad else [])
        return operation(x, given)

    nearest, _ = quantize_weight(weight, LIMIT)
    assert torch.equal(adaround(weight, scale, LIMIT, inputs, watched, steps=1), nearest)
    assert len(learning) == 1
    torch.testing.assert_close(learning[0], weight, rtol=0.0, atol=1e-5)


def test_weights_beyond_a_smaller_scale_are_cut() -> None:
    weight, scale, inputs, operation = drawn("conv")
    integers = adaround(weight, scale * 0.6, LIMIT, inputs, operation, steps=20)
    beyond = weight.abs() >= LIMIT * scale.reshape(-1, 1, 1, 1) * 0.6
    assert int(beyond.sum()) > 10
    assert torch.equal(integers[beyond].double(), LIMIT * weight[beyond].sign().double())
    assert int(integers.abs().max()) == LIMIT


def test_never_worse_than_nearest_on_the_inputs_it_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.passes.quantize.adaround.RATE", 50.0)  # throws V anywhere
    monkeypatch.setattr("secateur.passes.quantize.adaround.WARM_UP", 1.0)
    weight, scale, inputs, operation = drawn("conv")
    nearest, _ = quantize_weight(weight, LIMIT)
    found = adaround(weight, scale, LIMIT, inputs, operation, steps=3)
    assert torch.equal(found, nearest)


def test_a_weight_that_is_exact_in_integers_stays() -> None:
    integers = torch.randint(-LIMIT, LIMIT + 1, (6, 12), generator=torch.Generator().manual_seed(0))
    integers[:, 0] = LIMIT
    integers[2] = 0

    def not_learning(x: Tensor, weight: Tensor) -> Tensor:
        assert not weight.requires_grad
        return F.linear(x, weight)

    found = adaround(integers * 0.5, torch.full((6,), 0.5), LIMIT, correlated((8, 12), 1), not_learning)
    assert torch.equal(found, integers.to(torch.int8))


def test_learns_from_what_was_collected_in_inference_mode() -> None:
    weight, scale, inputs, operation = drawn("linear")
    expected = adaround(weight, scale, LIMIT, inputs, operation, steps=20)
    parameter = torch.nn.Parameter(weight)
    with torch.inference_mode():
        collected = inputs * 1.0
        assert torch.equal(adaround(parameter, scale, LIMIT, collected, operation, steps=20), expected)
    assert torch.equal(adaround(parameter, scale, LIMIT, collected, operation, steps=20), expected)
    assert parameter.grad is None
