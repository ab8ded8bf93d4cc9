"""What a case of whole heads is, and the attention that most of them are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.compiler.capture import trace
from secateur.compiler.program import Program

N, WIDTH, HEADS, INSIDE = 6, 20, 4, 5
"""Tokens, width, heads, channels of a head."""


@dataclass(frozen=True)
class HeadCase:
    """A module with an attention."""

    build: type[nn.Module]
    sliced: Mapping[str, Mapping[int, int]]
    """Tensor -> axis -> positions along it that belong to one head. All others have nothing of heads."""

    def program(self) -> Program:
        """The captured program of a fresh module, with biases and scales that are neither zero nor one."""
        torch.manual_seed(0)
        module = self.build()
        with torch.no_grad():
            for tensor in module.parameters():
                if tensor.ndim == 1:
                    tensor.uniform_(0.5, 1.5)
        return trace(module, (torch.zeros(2, N, WIDTH),))


HEAD_CASES: dict[str, HeadCase] = {}
Sliced = dict[int, int]
Class = type[nn.Module]


def heads(**sliced: Sliced) -> Callable[[Class], Class]:
    """Enter a module; in the names of its tensors two underscores are a point."""

    def register(module: Class) -> Class:
        HEAD_CASES[module.__name__] = HeadCase(module, {k.replace("__", "."): v for k, v in sliced.items()})
        return module

    return register


QKV: dict[str, Sliced] = {"qkv__weight": {0: 3 * INSIDE}, "qkv__bias": {0: 3 * INSIDE}}
FUSED: dict[str, Sliced] = {**QKV, "proj__weight": {1: INSIDE}}
APART: dict[str, Sliced] = {f"{x}__{what}": {0: INSIDE} for x in "qkv" for what in ("weight", "bias")}


class Attention(nn.Module):
    """Fused projections, as in ViT; hooks for what differs."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def split(self, x: Tensor) -> Any:
        b, n, c = x.shape
        return self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5

    def weigh(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def join(self, y: Tensor) -> Tensor:
        b, h, n, d = y.shape
        return y.transpose(1, 2).reshape(b, n, h * d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.head(self.proj(self.join(self.weigh(self.scores(q, k)) @ v)))
