"""Running ``eliminate-dead-channels`` on small networks that take images, with its result compared to its input."""

import copy
from typing import Any

import torch
from torch import nn

from secateur.compiler.capture import trace
from secateur.compiler.verifier import verify
from secateur.passes.base import PassResult, RemarkKind
from secateur.passes.eliminate_dead_channels import EliminateDeadChannels

from .killing import difference

EXACT = 1e-9
Border = Any


def eliminate(module: nn.Module, *, border: Border = "refuse") -> PassResult:
    """Run the pass on a float64 copy and compare it with its input, on batches of two sizes."""
    module = copy.deepcopy(module).double().eval()
    program = trace(module, torch.zeros(2, 3, 8, 8, dtype=torch.float64))
    result = EliminateDeadChannels(border=border).run(program)
    verify(result.program)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 8, 8, dtype=torch.float64)
        assert difference(module, copy.deepcopy(result.program.module), x) <= EXACT
    return result


def remarks(result: PassResult, kind: RemarkKind) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for remark in result.remarks:
        if remark.kind is kind:
            found.setdefault(remark.node, []).append(remark.reason)
    return found
