"""Observers, and scale and zero point from a range."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.compiler.functional import dequantize, quantize
from secateur.passes.quantize.ranges import BINS, OBSERVERS, Statistics, affine

REALS = st.floats(-1e4, 1e4, allow_nan=False, width=32)


def seen(values: torch.Tensor, batches: int = 4) -> Statistics:
    parts = values.chunk(batches)
    lows, highs = [float(p.min()) for p in parts], [float(p.max()) for p in parts]
    counts = torch.histc(values, BINS, min(lows), max(highs)).double().numpy()
    return Statistics(tuple(lows), tuple(highs), counts)


@given(REALS, REALS, st.sampled_from([torch.uint8, torch.int8]))
def test_zero_is_exact_and_the_range_is_covered_to_half_a_step(a: float, b: float, dtype: torch.dtype) -> None:
    low, high = min(a, b), max(a, b)
    found = affine(low, high, dtype)
    limits = torch.iinfo(dtype)
    assert limits.min <= found.zero_point <= limits.max
    assert found.scale == float(np.float32(found.scale))
    x = torch.tensor([0.0, min(low, 0.0), max(high, 0.0)], dtype=torch.float64)
    back = dequantize(quantize(x, found.scale, found.zero_point, dtype), found.scale, found.zero_point)
    assert back[0] == 0.0
    if found.scale != 1.0:
        assert float((back - x).abs().max()) <= 0.51 * found.scale + 1e-9


def test_a_tensor_of_zeros_gets_a_scale_of_one() -> None:
    assert affine(0.0, 0.0, torch.uint8).scale == 1.0


@pytest.mark.parametrize("name", OBSERVERS)
def test_observers_stay_within_what_was_seen(name: str) -> None:
    values = torch.randn(20000)
    low, high = OBSERVERS[name](seen(values))
    assert float(values.min()) - 1e-6 <= low < 0 < high <= float(values.max()) + 1e-6


def test_an_outlier_moves_minmax_and_hardly_the_others() -> None:
    values = torch.randn(20000)
    values[7] = 100.0
    ends = {name: observer(seen(values))[1] for name, observer in OBSERVERS.items()}
    assert ends["minmax"] == 100.0
    assert ends["percentile"] < 10
    assert ends["average"] < 100
    assert ends["kl"] < 100


@pytest.mark.parametrize("power", [1, 3, 5])
def test_mse_has_the_least_error(power: int) -> None:
    values = torch.randn(200000) ** power

    def error(name: str) -> float:
        found = affine(*OBSERVERS[name](seen(values)), torch.uint8)
        back = dequantize(quantize(values, found.scale, found.zero_point, torch.uint8), found.scale, found.zero_point)
        return float((back - values).square().mean())

    assert error("mse") <= 1.001 * min(map(error, OBSERVERS))
    assert error("mse") < 0.95 * error("minmax")
