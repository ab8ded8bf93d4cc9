"""torch runs programs in eval mode, with the threads that it was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.backends.engines.torch_eager import TorchEager
from secateur.compiler.errors import CompilerError
from support.small import Residual, captured


class Threads(nn.Module):
    """Remembers with how many threads it was run."""

    seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Threads.seen = torch.get_num_threads()
        return x


def test_runs_in_eval_mode_without_gradients() -> None:
    program = captured(Residual())
    x = torch.randn(4, 3, 8, 8)
    wanted = program.module(x)
    program.root.train()
    (y,) = TorchEager().build(program, threads=1)(x)
    assert torch.equal(y, wanted)
    assert not y.requires_grad
    assert program.root.training


def test_threads() -> None:
    from secateur.backends.engines.torch_eager import ModuleEngine

    torch.set_num_threads(1)
    ModuleEngine(Threads(), 2)(torch.zeros(1))
    assert Threads.seen == 2
    assert torch.get_num_threads() == 1


def test_a_file_and_back(tmp_path: Path) -> None:
    program = captured(Residual())
    path = tmp_path / "model.pt2"
    assert TorchEager().emit(program, path).notes == ()
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(TorchEager().load(path, threads=1)(x), [program.module(x).detach()])


def test_errors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match="torch cannot run the model"):
        TorchEager().build(captured(Residual()), threads=1)(torch.zeros(1, 4, 8, 8))
    (tmp_path / "model.pt2").write_bytes(b"nothing")
    with pytest.raises(CompilerError, match=r"cannot load the file: .*\n  at: model\.pt2"):
        TorchEager().load(tmp_path / "model.pt2", threads=1)


def test_operations_are_timed_one_by_one() -> None:
    program = captured(Residual())
    found = TorchEager().profile(program, threads=1, batch=3)
    assert {"stem", "fc"} <= {op.node for op in found if op.kind in ("convolution", "linear")}
    assert all(op.ms > 0 and op.precision == "float32" for op in found)
