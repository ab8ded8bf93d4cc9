"""What tests of compensation share: a pruned program with calibration data, and how far it is off."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.compiler.capture import trace
from secateur.compiler.program import Program
from secateur.passes.base import Pass, RemarkKind
from secateur.passes.pipeline import PassPipeline, PipelineResult, Step
from secateur.passes.prune.prune import Prune

from .exact import lively


def images(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise, with a mean that differs from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(1, shape[1], *[1] * (len(shape) - 2), generator=generator)
    return torch.randn(shape, generator=generator) + mean


def mended(module: nn.Module, data: Sequence[Tensor], prune: dict[str, Any], *passes: Pass) -> PipelineResult:
    """Prune a module and run compensation passes behind."""
    program = trace(lively(module), torch.zeros(1, *data[0].shape[1:], dtype=data[0].dtype))
    return PassPipeline([Prune(**prune), *passes]).run(program)


def missed(step: Step) -> dict[str, str]:
    """What a step refused, by node."""
    return {r.node: r.reason for r in step.remarks if r.kind is RemarkKind.MISSED}


def error(program: Program, dense: Program, x: Tensor) -> float:
    """Root mean square difference of two programs' outputs."""
    with torch.no_grad():
        return float((program.module.eval()(x) - dense.module.eval()(x)).square().mean().sqrt())
