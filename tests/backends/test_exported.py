"""The exported program runs with other batch sizes where it can, and says so where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx, nn

from secateur.backends.exported import emit_pt2
from secateur.compiler.errors import CompilerError


class Net(nn.Module):
    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.dropout = nn.Dropout(0.5)
        self.fixed = fixed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.conv(x))
        return x.reshape(2, -1) if self.fixed else x.flatten(1)


def test_any_batch_size(tmp_path: Path) -> None:
    model = fx.symbolic_trace(Net(fixed=False)).train()
    note = emit_pt2(model, [torch.rand(1, 3, 8, 8)], tmp_path / "model.pt2")
    assert note is None
    assert model.training
    assert model.get_submodule("dropout").training
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (1, 2, 5):
        x = torch.rand(batch, 3, 8, 8)
        torch.testing.assert_close(loaded(x), model.eval()(x))


def test_a_fixed_batch_size_is_noted(tmp_path: Path) -> None:
    model = Net(fixed=True)
    note = emit_pt2(model, [torch.rand(2, 3, 8, 8)], tmp_path / "model.pt2")
    assert note is not None
    assert note.startswith("model.pt2 takes batches of 2 only")
    assert "\n" not in note
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(x), model.eval()(x))


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > float(x.mean()) * 2 else x + 1

    with pytest.raises(CompilerError, match=r"torch\.export cannot export the model"):
        emit_pt2(Odd(), [torch.rand(2, 3)], tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()
