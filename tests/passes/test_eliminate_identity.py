"""Removing calls that give back their input, and keeping those that only look as if."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.compiler.capture import trace
from secateur.passes.eliminate_identity import NOTE, EliminateIdentity
from support.exact import names, run_exact


class Calls(nn.Module):
    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 4, 1)
        self.dropout = nn.Dropout()
        self.identity = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, self.conv(x)) * 2


REMOVED = {
    "dropout layer": lambda m, x: m.dropout(x),
    "dropout function": lambda m, x: F.dropout(x, 0.5, training=m.training),
    "identity": lambda m, x: m.identity(x),
    "view": lambda m, x: x.view(x.shape),
    "flatten": lambda m, x: x.flatten(3),
    "permute": lambda m, x: x.permute(0, 1, 2, 3),
    "transpose": lambda m, x: x.transpose(-1, 3),
    "pad": lambda m, x: F.pad(x, (0, 0, 0, 0)),
    "max pool": lambda m, x: F.max_pool2d(x, 1),
    "avg pool": lambda m, x: F.avg_pool2d(x, 1, 1),
    "interpolate": lambda m, x: F.interpolate(x, scale_factor=1),
    "one part": lambda m, x: torch.cat([x], 1),
    "plus zero": lambda m, x: 0 + x,
    "times one": lambda m, x: x * 1.0,
    "its own dtype": lambda m, x: x.to(torch.float32),
    "expand": lambda m, x: x.expand(x.shape),
}


@pytest.mark.parametrize("name", REMOVED)
def test_removes(name: str) -> None:
    result = run_exact(Calls(REMOVED[name]), (2, 3, 5, 5), EliminateIdentity())
    assert names(result)[:2] + names(result)[-2:] == ["x", "conv", "mul", "output"] or names(result) == [
        "x", "conv", "mul_1", "output"
    ]  # fmt: skip
    assert (NOTE in result.program.notes) == ("dropout" in name)


KEPT = {
    "square transpose": lambda m, x: x.transpose(2, 3),
    "square permute": lambda m, x: x.permute(0, 1, 3, 2),
    "roll": lambda m, x: torch.roll(x, 1, 2),
    "pad and crop": lambda m, x: F.pad(x, (1, -1, 0, 0)),
    "pool": lambda m, x: F.max_pool2d(x, 3, 1, 1),
    "two parts": lambda m, x: torch.cat([x, x], 1),
    "plus one": lambda m, x: x + 1,
    "times two": lambda m, x: x * 2,
    "minus from zero": lambda m, x: 0 - x,
    "relu": lambda m, x: x.relu(),
    "contiguous": lambda m, x: x.transpose(2, 3).contiguous(),
    "pool to the same size": lambda m, x: F.adaptive_max_pool2d(x, 3),
}


@pytest.mark.parametrize("name", KEPT)
def test_keeps(name: str) -> None:
    result = run_exact(Calls(KEPT[name]), (2, 3, 5, 5), EliminateIdentity())
    assert not result.changed


def test_a_dropout_changed_in_place_before_it_was_removed() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop = nn.Conv2d(3, 4, 1), nn.Dropout(0.5, inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.drop(y).relu_() + y

    result = run_exact(InPlace(), (2, 3, 5, 5), EliminateIdentity())
    assert result.changed


class BatchIntoChannels(nn.Module):
    """Filters that depend on the sample: the batch becomes groups, which at a batch of one changes no shape."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(1, b * c, h, w)
        return nn.functional.avg_pool2d(x, 2).reshape(b, c, h // 2, w // 2)


def test_what_changes_no_shape_for_one_batch_size_only_stays() -> None:
    program = trace(BatchIntoChannels(), torch.zeros(1, 4, 6, 6))
    result = EliminateIdentity().run(program)
    assert not result.changed
    assert result.program.module(torch.zeros(3, 4, 6, 6)).shape == (3, 4, 3, 3)
