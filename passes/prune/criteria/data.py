"""Reading calibration data for criteria."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from ....compiler.errors import SourceError
from ....compiler.program import InputSpec
from .base import Batch


def read(data: Iterable[Any], inputs: Sequence[InputSpec]) -> tuple[Batch, ...]:
    """Read calibration data into memory: tensors, or tuples that begin with the model's inputs.

    A tensor of integers [N] that follows the inputs at the end of a tuple is the labels.

    Raises:
        SourceError: There are none, or they are not what the model takes.
    """
    found: list[Batch] = []
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
        batch = tuple(part.detach().cpu() for part in parts[: len(inputs)])
        found.append(Batch(batch, _labels(parts[-1], batch) if len(parts) > len(inputs) else None))
    if not found:
        raise SourceError("there are no calibration data", hint="give at least one batch")
    return tuple(found)


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
