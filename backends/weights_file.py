"""Weights as a safetensors file: every name with its values, shared tensors once for each of their names.

Written tensor by tensor, so that saving a model takes no second copy of it. The format: 8 bytes for the header's
length, the header (JSON, padded with spaces to a multiple of 8), the data, larger element types first.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from ..compiler.errors import ArtefactError

_KINDS: Final = tuple("U64 I64 F64 C64 F32 U32 I32 BF16 F16 U16 I16 F8_E4M3 F8_E5M2 I8 U8 BOOL".split())
"""Element types in the order in which the format lays tensors out."""


def to_bytes(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file as bytes; see :func:`save`."""
    stream = io.BytesIO()
    _write(stream, state, metadata)
    return stream.getvalue()


def save(state: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file.

    Args:
        state: Tensors by name. They keep their dtypes; tied weights are written under each of their names, because
            the format knows no sharing and a strict load asks for every name.
        path: The file.
        metadata: Texts for the file's header.
    """
    with path.open("wb") as stream:
        _write(stream, state, metadata)


def size(tensors: Iterable[tuple[str, torch.Tensor]], metadata: Mapping[str, str] | None = None) -> int:
    """Return how many bytes the file of these tensors has, without making it."""
    header, order = _layout(dict(tensors), metadata)
    return len(header) + sum(t.numel() * t.element_size() for _, t in order)


def _write(stream: BinaryIO, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None) -> None:
    header, order = _layout(state, metadata)
    stream.write(header)
    for _, tensor in order:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            stream.write(flat.view(torch.uint8).numpy().data)


def _layout(
    state: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None
) -> tuple[bytes, list[tuple[str, torch.Tensor]]]:
    """Return the file's beginning and the order of its tensors."""
    order = sorted(state.items(), key=lambda item: (_KINDS.index(_kind(item[1])), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in order:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _kind(tensor), "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, order


def _kind(tensor: torch.Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.").upper()
    for long, short in (("BFLOAT", "BF"), ("FLOAT", "F"), ("COMPLEX", "C"), ("UINT", "U"), ("INT", "I")):
        name = name.replace(long, short)
    return name.removesuffix("FN")


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
