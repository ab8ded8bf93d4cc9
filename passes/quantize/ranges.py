"""From what calibration saw of a tensor to the range, scale and zero point that it is quantized with.

    minmax       the smallest and largest value seen
    average      their exponential moving average over batches: single outliers count for little
    percentile   cut what lies beyond the 99.99th percentile on either side
    mse          the clipping that minimises the squared quantization error of the histogram
    kl           the clipping whose quantized histogram diverges least from the seen one

uint8 affine: q = round(x / scale) + zero_point, scale = (high - low) / 255, with zero representable exactly, since
convolutions pad with it. Jacob et al., CVPR 2018; Nagel et al., A White Paper on Neural Network Quantization, 2021; KL:
Migacz, 8-bit Inference with TensorRT, GTC 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]

BINS: Final = 2048
MOMENTUM: Final = 0.9
PERCENTILE: Final = 0.9999
_CANDIDATES: Final = np.linspace(0.3, 1.0, 57)
"""Fractions of the seen range that the searching observers try."""


@dataclass(frozen=True)
class Statistics:
    """What calibration saw of one tensor."""

    lows: tuple[float, ...]
    """Smallest value, batch by batch."""
    highs: tuple[float, ...]
    counts: Floats
    """Histogram over [min(lows), max(highs)], BINS long; empty where the observer needs none."""

    @property
    def low(self) -> float:
        """Smallest value of all."""
        return min(self.lows)

    @property
    def high(self) -> float:
        """Largest value of all."""
        return max(self.highs)


@dataclass(frozen=True)
class Affine:
    """How a tensor is quantized: x = scale * (q - zero_point)."""

    scale: float
    zero_point: int
    dtype: torch.dtype

    @property
    def low(self) -> float:
        """The smallest value that can be represented."""
        return self.scale * (torch.iinfo(self.dtype).min - self.zero_point)

    @property
    def high(self) -> float:
        """The largest value that can be represented."""
        return self.scale * (torch.iinfo(self.dtype).max - self.zero_point)


def affine(low: float, high: float, dtype: torch.dtype) -> Affine:
    """Return scale and zero point for a range, widened to hold zero; the scale is a float32, as engines store it."""
    low, high = min(low, 0.0), max(high, 0.0)
    limits = torch.iinfo(dtype)
    scale = float(np.float32((high - low) / (limits.max - limits.min)))
    if not np.isfinite(scale) or scale < float(np.finfo(np.float32).tiny):
        return Affine(1.0, limits.min, dtype)
    zero_point = int(np.clip(np.round(limits.min - low / scale), limits.min, limits.max))
    return Affine(scale, zero_point, dtype)


def minmax(seen: Statistics) -> tuple[float, float]:
    """Return the smallest and largest value seen."""
    return seen.low, seen.high


def average(seen: Statistics) -> tuple[float, float]:
    """Return exponential moving averages of the batches' extremes."""

    def smooth(values: tuple[float, ...]) -> float:
        mean = values[0]
        for value in values[1:]:
            mean = MOMENTUM * mean + (1.0 - MOMENTUM) * value
        return mean

    return smooth(seen.lows), smooth(seen.highs)


def percentile(seen: Statistics) -> tuple[float, float]:
    """Return the range between the percentiles 1 - PERCENTILE and PERCENTILE."""
    total = np.cumsum(seen.counts) / max(float(seen.counts.sum()), 1.0)
    edges = np.linspace(seen.low, seen.high, BINS + 1)
    first = int(np.searchsorted(total, 1.0 - PERCENTILE, side="right"))
    last = int(np.searchsorted(total, PERCENTILE, side="left"))
    return float(edges[min(first, BINS - 1)]), float(edges[min(last, BINS - 1) + 1])


def mse(seen: Statistics) -> tuple[float, float]:
    """Return the clipped range with the least squared error over the histogram, at 8 bits."""
    centres = _centres(seen)

    def error(low: float, high: float) -> float:
        scale = max((high - low) / 255.0, 1e-30)
        offset = np.round(-low / scale)
        levels = np.clip(np.round(centres / scale) + offset, 0, 255)
        return float((seen.counts * (centres - (levels - offset) * scale) ** 2).sum())

    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    best = min(_CANDIDATES[::-1], key=lambda f: error(low * f, high * f))
    low, high = low * best, high * best
    if low < 0.0 < high:  # then each end alone
        low *= min(_CANDIDATES[::-1], key=lambda f: error(low * f, high))
        high *= min(_CANDIDATES[::-1], key=lambda f: error(low, high * f))
    return float(low), float(high)


def kl(seen: Statistics) -> tuple[float, float]:
    """Return the clipped range whose histogram in 256 levels diverges least from the one seen (clipped alike)."""
    centres = _centres(seen)

    def divergence(low: float, high: float) -> float:
        inside = (centres >= low) & (centres <= high)
        if not inside.any() or not seen.counts[inside].any():
            return float("inf")
        reference = np.where(inside, seen.counts, 0.0)
        ends = np.flatnonzero(inside)[[0, -1]]
        reference[ends[0]] += seen.counts[: ends[0]].sum()
        reference[ends[1]] += seen.counts[ends[1] + 1 :].sum()
        level = np.clip(((centres - low) / max(high - low, 1e-30) * 255.0).round(), 0, 255).astype(np.int64)
        occupied = inside & (seen.counts > 0)
        mass = np.bincount(level[inside], weights=seen.counts[inside], minlength=256)
        places = np.bincount(level[occupied], minlength=256)
        quantized = np.where(occupied, mass[level] / np.maximum(places[level], 1), 0.0)
        p, q = reference / reference.sum(), quantized / max(quantized.sum(), 1e-30)
        both = (p > 0) & (q > 0)
        return float((p[both] * np.log(p[both] / q[both])).sum() + p[(p > 0) & (q <= 0)].sum() * 50.0)

    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    best = min(_CANDIDATES[::-1], key=lambda f: divergence(low * f, high * f))
    return float(low * best), float(high * best)


def _centres(seen: Statistics) -> Floats:
    width = (seen.high - seen.low) / BINS
    centres: Floats = seen.low + width * (np.arange(BINS, dtype=np.float64) + 0.5)
    return centres


OBSERVERS: Final[dict[str, Callable[[Statistics], tuple[float, float]]]] = {
    "minmax": minmax,
    "average": average,
    "percentile": percentile,
    "mse": mse,
    "kl": kl,
}
WITH_HISTOGRAM: Final = frozenset({"percentile", "mse", "kl"})
