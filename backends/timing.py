"""Timing engines so that they can be compared: warmed up, in turns, round by round."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from importlib import metadata
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch

from .engines.base import Engine

_WARM_UP_CALLS: Final = 3
_WARM_UP_SECONDS: Final = 0.1

Clock = Callable[[], float]


def warm_up(engine: Engine, inputs: Sequence[torch.Tensor], clock: Clock = perf_counter) -> None:
    """Call an engine until it has compiled, and a few times more."""
    engine(*inputs)  # compiles, for as long as it takes
    start = clock()
    for _ in range(_WARM_UP_CALLS):
        engine(*inputs)
        if clock() - start >= _WARM_UP_SECONDS:
            break


def rounds(
    ready: Sequence[tuple[Engine, Sequence[torch.Tensor]]],
    repeats: int,
    min_seconds: float,
    clock: Clock = perf_counter,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Let engines take turns.

    Args:
        ready: Engines and their inputs, warmed up.
        repeats: Rounds at least.
        min_seconds: Seconds that all of them take together at least.
        clock: Seconds.

    Returns:
        Seconds per call, [rounds, engines].
    """
    times: list[list[float]] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        began = clock()
        while len(times) < repeats or clock() - began < min_seconds:
            row = [0.0] * len(ready)
            for place in range(len(ready)):
                # Another one begins each round: nobody always runs right after the same neighbour's leftovers.
                i = (place + len(times)) % len(ready)
                engine, inputs = ready[i]
                start = clock()
                engine(*inputs)
                row[i] = clock() - start
            times.append(row)
    finally:
        if collecting:
            gc.enable()
    return np.array(times)


def versions(backends: Sequence[str]) -> dict[str, str]:
    """Return the versions of the packages that engines are made of."""
    found: dict[str, str] = {"torch": str(torch.__version__)}
    for name, package in (("onnx", "onnxruntime"), ("openvino", "openvino")):
        if name in backends:
            found[package] = metadata.version(package)
    return found
