"""The emitted ``model.pt2``: a ``torch.export`` program, for any batch size where the model allows that."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..compiler.errors import CompilerError


def emit_pt2(module: nn.Module, inputs: Sequence[torch.Tensor], path: Path) -> str | None:
    """Export a module in eval mode and save it.

    Args:
        module: What to export; left in the mode that it is in.
        inputs: Example inputs, batch first.
        path: The file to write.

    Returns:
        A sentence for the report when the file holds one batch size only, else ``None``.

    Raises:
        CompilerError: The module cannot be exported at all.
    """
    modes = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        with _quiet():
            exported, note = _export(module, tuple(inputs))
            # Through memory, so that a full disk is an OSError like any other.
            buffer = io.BytesIO()
            torch.export.save(exported, buffer)
    finally:
        for inner, training in modes.items():
            inner.training = training
    path.write_bytes(buffer.getvalue())
    return note


def _export(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.export.ExportedProgram, str | None]:
    if inputs and all(tensor.ndim for tensor in inputs):
        batch = torch.export.Dim("batch", min=1)
        # An example batch of one would be taken for a constant.
        several = tuple(torch.cat([t, t]) if t.shape[0] == 1 else t for t in inputs)
        try:
            shapes = tuple({0: batch} for _ in several)
            return torch.export.export(module, several, dynamic_shapes=_dynamic(module, shapes)), None
        except Exception as error:  # whatever stands against a free batch size, a fixed one may still work
            reason = _first_line(error)
    else:
        reason = "an input has no batch dimension"
    try:
        exported = torch.export.export(module, inputs)
    except Exception as error:
        raise CompilerError(
            f"torch.export cannot export the model: {_first_line(error)}", hint="leave pt2 out of what is emitted"
        ) from error
    size = inputs[0].shape[0] if inputs and inputs[0].ndim else 0
    return exported, f"model.pt2 takes batches of {size} only: {reason}"


def _dynamic(module: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the shapes in the form that fits the signature: nested for ``forward(*inputs)``."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return (shapes,) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else shapes


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Generator[None]:
    """Keep the exporter's own warnings and logs out of the user's way; what matters comes back as an error."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
