"""Weights come back as they were, whatever their memory looks like."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.backends import weights_file
from secateur.compiler.errors import ArtefactError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
]


def test_every_dtype_and_shape(tmp_path: Path) -> None:
    state = {str(dtype): torch.arange(12).reshape(3, 4).to(dtype) for dtype in DTYPES}
    state |= {"bool": torch.tensor([True, False]), "scalar": torch.tensor(3), "empty": torch.zeros(0, 4)}
    weights_file.save(state, tmp_path / "w.safetensors")
    found = weights_file.read(tmp_path / "w.safetensors")
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_views_and_shared_memory(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {"whole": base, "transposed": base.t(), "part": base[1:3, ::2], "expanded": torch.ones(1).expand(5)}
    state["last"] = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    weights_file.save(state, tmp_path / "w.safetensors")
    found = weights_file.read(tmp_path / "w.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_tied_weights_load_strictly(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    weights_file.save(model.state_dict(), tmp_path / "w.safetensors", metadata={"made by": "test"})
    expected = first.weight.detach().clone()
    with torch.no_grad():
        first.weight.zero_()
    model.load_state_dict(weights_file.read(tmp_path / "w.safetensors"), strict=True)
    assert torch.equal(second.weight, expected)


def test_same_tensors_same_bytes() -> None:
    state = {"b": torch.ones(2), "a": torch.zeros(3)}
    assert weights_file.to_bytes(state) == weights_file.to_bytes(dict(reversed(state.items())))


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, b"\xff" * 64, None])
def test_damaged_files_are_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"cannot read the weights|not a complete safetensors file"):
        weights_file.read(path)
