"""Weights as a safetensors file: every name with its values, shared tensors once for each of their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ..compiler.errors import ArtefactError


def to_bytes(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file as bytes.

    Args:
        state: Tensors by name. They keep their dtypes; tied weights are written under each of their names, because
            the format knows no sharing and a strict load asks for every name.
        metadata: Texts for the file's header.
    """
    return save_tensors(
        {name: _plain(tensor) for name, tensor in state.items()},
        metadata=dict(metadata) if metadata else None,
    )


def save(state: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, see :func:`to_bytes`."""
    path.write_bytes(to_bytes(state, metadata))


def read(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        ArtefactError: The file is missing, cannot be read, or is no safetensors file.
    """
    try:
        return load_tensors(path.read_bytes())
    except OSError as error:
        raise ArtefactError(f"cannot read the weights: {error.strerror or error}", where=str(path)) from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtefactError(
            f"not a complete safetensors file: {error}", where=str(path), hint="write the artefact again"
        ) from error


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with memory of its own, as the format asks."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format).contiguous()
