"""Milliseconds as a function of the widths, learnt from networks that were pruned at random and timed layer by layer.

    t(layer) = a MACs + b out + c in + d          MACs of the layer, channels that it writes and reads
    t(rest)  = e sum of channels that layers write, over their positions + f

with coefficients of at least zero, fitted per layer to what an engine's profile says of some ten networks (non-negative
least squares, relative to the times). Engines compute in blocks of channels: what a layer writes and what it reads
enter rounded up to the multiples (1, 4, 8, 16, 32) that explain the times best, so that a search finds by itself which
widths the engine likes.

Times of layers in a profile need not add up to the time of the network, and a search exploits every error of a model:
what a network really takes is measured, in pairs with the dense one, and the search corrected (:mod:`.widths`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from ...compiler.cost_model import CostModel, LayerProducts, Products
from ...compiler.program import Program
from .selection import Bools, Ints, Selection

Floats = npt.NDArray[np.float64]

NETWORKS: Final = 10
"""How many networks are timed to learn from."""
Blocks = tuple[int, int]
"""Multiples to which engines round up the channels that a layer writes and those that it reads."""
SIZES: Final = (1, 4, 8, 16, 32)
SMALLEST: Final = 0.25
"""Random widths are at least this fraction of the original's."""


@dataclass(frozen=True)
class Profile:
    """Where the time of a network goes."""

    layers: Mapping[str, float]
    """Seconds per layer."""
    rest: float
    """Seconds of everything else."""

    @property
    def seconds(self) -> float:
        """Of everything together."""
        return sum(self.layers.values()) + self.rest


class Stopwatch(Protocol):
    """Times programs in the form in which they will be deployed: on an engine, after the passes that follow."""

    @property
    def conditions(self) -> str:
        """Return the engine, threads and batch size, in words."""
        ...

    def profile(self, program: Program) -> Profile:
        """Return where the time of a program goes."""
        ...

    def compare(self, programs: Sequence[Program]) -> Floats:
        """Return seconds per call, [rounds, programs], of programs that took turns."""
        ...


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Seconds as a sum of products of counts: those of a cost model, and the same rounded up to ``blocks``."""

    products: Products
    blocks: Blocks
    rounded: Bools
    """[counts]: which of them are rounded up. Those of several blocks of channels side by side are not."""
    error: float
    """Median relative error of the time of a layer, over the networks learnt from."""

    def extend(self, counts: Ints) -> Floats:
        """Return the counts with the rounded ones behind them."""
        return _extend(counts, self.blocks, self.rounded)

    def __call__(self, counts: Ints) -> float:
        """Return seconds, for the counts of the cost model."""
        return self.products(self.extend(counts))


def learn(
    model: CostModel,
    selection: Selection,
    prune: Callable[[Bools], Program],
    stopwatch: Stopwatch,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> LatencyModel:
    """Time networks of random widths, and fit.

    Args:
        model: Counts of the dense program.
        selection: Legal widths.
        prune: From the classes that stay to a pruned program.
        stopwatch: Times programs.
        seed: Of the widths.
        progress: Told which network is being timed.
    """
    generator = np.random.default_rng(seed)
    counts: list[Ints] = []
    profiles: list[Profile] = []
    for index in range(NETWORKS):
        progress(f"timing network {index + 1} of {NETWORKS} on {stopwatch.conditions}")
        keep = selection.keep(selection.full if index == 0 else _random_levels(selection, generator))
        counts.append(model.counts(keep))
        profiles.append(stopwatch.profile(prune(keep)))
    return fit(model, selection, counts, profiles)


def fit(
    model: CostModel,
    selection: Selection,
    counts: Sequence[Ints],
    profiles: Sequence[Profile],
) -> LatencyModel:
    """Fit the model to profiles of networks with these counts; the blocks are those that explain them best."""
    rounded = _of_one_block(model, selection)
    fits = [_Fit(model, blocks, rounded, counts, profiles) for blocks in product(SIZES, SIZES)]
    # Of fits that are as good (to the accuracy of any clock), the one with the smaller blocks.
    return min(fits, key=lambda f: (f.residual + 1e-9) * (1.0 + 1e-3 * sum(f.blocks))).model()


def _of_one_block(model: CostModel, selection: Selection) -> Bools:
    """Tell which counts depend on a single block, so that rounding them up is a function of that block's level."""
    full = model.counts(selection.keep(selection.full))
    touched = np.zeros(len(full), dtype=np.int64)
    for index, allowed in enumerate(selection.allowed):
        if len(allowed) > 1:
            levels = selection.full.copy()
            levels[index] = allowed[0]
            touched += model.counts(selection.keep(levels)) != full
    return touched <= 1


def _extend(counts: Ints, blocks: Blocks, rounded: Bools) -> Floats:
    up = [np.where(rounded, -(-counts // block) * block, counts) for block in blocks]
    return np.concatenate([counts, *up]).astype(np.float64)


def _random_levels(selection: Selection, generator: np.random.Generator) -> Ints:
    levels = selection.full.copy()
    for index, allowed in enumerate(selection.allowed):
        wanted = generator.uniform(SMALLEST, 1.0) * selection.full[index]
        levels[index] = allowed[int(np.abs(allowed - wanted).argmin())]
    return levels


class _Fit:
    """Coefficients for one choice of blocks."""

    def __init__(
        self,
        model: CostModel,
        blocks: Blocks,
        rounded: Bools,
        counts: Sequence[Ints],
        profiles: Sequence[Profile],
    ) -> None:
        self.blocks, self.rounded = blocks, rounded
        self.residual = 0.0
        self._counts = len(counts[0])
        self._width = model.macs.rows.shape[1]
        self._rows: list[Ints] = []
        self._coefficients: list[float] = []
        self._fixed = 0.0
        self._errors: list[Floats] = []
        extended = np.array([_extend(c, blocks, rounded) for c in counts])
        for layer in model.layers:
            times = np.array([profile.layers.get(layer.name, np.nan) for profile in profiles])
            seen = np.isfinite(times) & (times > 0)
            if seen.any():
                self._layer(layer, extended[seen], times[seen])
        named = {layer.name for layer in model.layers}
        rest = np.array(
            [p.rest + sum(seconds for name, seconds in p.layers.items() if name not in named) for p in profiles]
        )
        self._others(model.layers, extended, rest)

    def _single(self, count: int) -> Ints:
        """Return the row of one count by itself."""
        return np.array([count, *[self._counts - 1] * (self._width - 1)], dtype=np.int64)

    def _layer(self, layer: LayerProducts, counts: Floats, times: Floats) -> None:
        rows = np.full((len(layer.rows), self._width), self._counts - 1)
        rows[:, : layer.rows.shape[1]] = layer.rows + np.where(layer.reads, 2, 1) * self._counts
        singles = [self._single(count) for count in dict.fromkeys(rows[0].tolist()) if len(rows) == 1]
        columns = [(counts[:, rows].prod(axis=2) * layer.coefficients).sum(axis=1)]
        columns += [counts[:, row].prod(axis=1) for row in singles]
        found = self._solve(np.array([*columns, np.ones(len(times))]).T, times)
        for row, macs in zip(rows, layer.coefficients, strict=True):
            self._add(row, found[0] * macs)
        for row, coefficient in zip(singles, found[1:], strict=False):
            self._add(row, coefficient)
        self._fixed += found[-1]

    def _others(self, layers: Sequence[LayerProducts], counts: Floats, times: Floats) -> None:
        written = [(layer.writes, layer.positions) for layer in layers if layer.writes is not None]
        total = sum((counts[:, count] * positions for count, positions in written), np.zeros(len(counts)))
        found = self._solve(np.array([total, np.ones(len(times))]).T, times)
        for count, positions in written:
            self._add(self._single(count), found[0] * positions)
        self._fixed += found[1]

    def _solve(self, features: Floats, times: Floats) -> Floats:
        scale = np.maximum(features.max(axis=0), 1e-30)
        weights = 1.0 / np.maximum(times, 1e-9)
        solution, _ = nnls(features / scale * weights[:, None], times * weights)
        error = (features / scale @ solution - times) * weights
        # Seconds count: a wrong guess of a long layer is worse than one of a short layer.
        self.residual += float((error**2).mean() * times.mean())
        self._errors.append(np.abs(error))
        return solution / scale

    def _add(self, row: Ints, coefficient: float) -> None:
        if coefficient > 0:
            self._rows.append(row)
            self._coefficients.append(float(coefficient))

    def model(self) -> LatencyModel:
        """Return the sum of everything."""
        rows = np.array(self._rows, dtype=np.int64).reshape(-1, self._width)
        error = float(np.median(np.concatenate(self._errors))) if self._errors else 1.0
        products = Products(rows, np.array(self._coefficients), self._fixed)
        return LatencyModel(products, self.blocks, self.rounded, error)
