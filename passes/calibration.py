"""Calibration data, as all passes that look at data read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx

from ..compiler.errors import SourceError
from ..compiler.program import Program

_OF_STRIDES: Final = frozenset("view view_as as_strided stride is_contiguous storage_offset data_ptr".split())
"""Calls whose result, or success, depends on how their input lies in memory."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One tensor [N, ...] per input of the model, on the CPU, and labels int64 [N] where they were given."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None


def read(data: Iterable[Any], program: Program) -> tuple[Batch, ...]:
    """Read calibration data into memory: tensors, or tuples that begin with the model's inputs.

    A tensor of integers [N] that follows the inputs at the end of a tuple is the labels. Images come channels-last,
    as convolutions on a CPU like them best, unless the program asks how they lie.

    Raises:
        SourceError: There are none, or they are not what the model takes.
    """
    found: list[Batch] = []
    inputs, lies = program.inputs, _layout(program.graph)
    for item in data:
        parts: Sequence[Any] = item if isinstance(item, tuple | list) else (item,)
        for given, spec in zip(parts, inputs, strict=False):
            if not isinstance(given, Tensor) or given.ndim != len(spec.shape) or not len(given):
                got = f"of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
                raise SourceError(
                    f"calibration data for {spec.name!r} are {got}, not batches of shape {('N', *spec.shape[1:])}",
                    hint="an iterable of tensors [N, C, H, W], or of (images, labels)",
                )
        if len(parts) < len(inputs):
            raise SourceError(f"calibration data give {len(parts)} inputs, the model takes {len(inputs)}")
        batch = tuple(_in_layout(part.detach().cpu(), lies) for part in parts[: len(inputs)])
        found.append(Batch(batch, _labels(parts[-1], batch) if len(parts) > len(inputs) else None))
    if not found:
        raise SourceError("there are no calibration data", hint="give at least one batch")
    return tuple(found)


def _layout(graph: fx.Graph) -> torch.memory_format:
    names = (n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "") for n in graph.nodes)
    return torch.contiguous_format if _OF_STRIDES.intersection(names) else torch.channels_last


def _in_layout(given: Tensor, layout: torch.memory_format) -> Tensor:
    return given.contiguous(memory_format=layout) if given.ndim == 4 else given


def _labels(last: Any, inputs: Sequence[Tensor]) -> Tensor | None:
    """Return what follows the inputs if it is labels: one integer per sample."""
    if last is None:
        return None
    if not isinstance(last, Tensor) or last.shape != inputs[0].shape[:1] or last.is_floating_point():
        got = f"of shape {tuple(last.shape)}, {last.dtype}" if isinstance(last, Tensor) else type(last).__name__
        raise SourceError(
            f"the labels of calibration data are {got}, not one integer for each of {len(inputs[0])} samples",
            hint="leave them out where they are something else: the model's own answers are used then",
        )
    return last.detach().cpu().long()


def first_tensor(value: Any) -> Tensor:
    """Return the first tensor of an output."""
    while not isinstance(value, Tensor):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return value
