"""Predictions of a compact network against those of the masked one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.backends.compile import compile
from secateur.backends.training.predictions import compare, masked_module, masked_original
from secateur.backends.training.splits import InMemory
from secateur.compiler.data.preprocess import Preprocess
from secateur.compiler.errors import CompilerError

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(*layers).eval()


def images() -> InMemory:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (300, 3, 8, 8), generator=generator).to(torch.uint8)
    how = Preprocess(mean=(0.5,) * 3, std=(0.2,) * 3)
    return InMemory("random", tuple("abcd"), how, pixels, torch.arange(300) % 4)


def test_a_pruned_network_predicts_what_the_masked_one_does() -> None:
    compiled = compile(network(), (torch.zeros(1, 3, 8, 8),), pipeline="prune{ratio=0.5}")
    compact = compiled.module
    found = compare(compact, masked_original(compiled.original, compiled.plan), images(), CPU)
    assert found["images"] == 300
    assert found["same_as_masked"]
    assert next(compact.parameters()).dtype == torch.float32


def test_another_network_is_told_from_it() -> None:
    other = network()
    with torch.no_grad():
        for parameter in list(other.parameters())[-2:]:
            parameter.neg_()
    with pytest.raises(CompilerError, match=r"\d+ of 300 predictions differ from those of the masked network"):
        compare(network(), masked_module(other), images(), CPU)


def test_what_rounding_decides_is_looked_at_again_in_float64() -> None:
    exact = network()

    def masked(device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Any]:
        def rounded(x: Tensor) -> Tensor:
            logits = exact.to(device, dtype)(x)
            if dtype == torch.float32:  # as if every other image's logits were too close to call
                logits[::2] = -logits[::2]
            return logits

        return rounded

    found = compare(network(), masked, images(), CPU)
    assert found["in_float64"] == 150
    assert found["same_as_masked"]
