"""Running exact passes, and proving what they made as ``compile`` does."""

import torch
from torch import nn

from secateur.backends.checks import check
from secateur.compiler.capture import trace
from secateur.passes.base import Pass, PassResult, Remark, RemarkKind
from secateur.passes.pipeline import PassPipeline, PipelineResult


def lively(module: nn.Module) -> nn.Module:
    """Give batch norms statistics and affine parameters that say something, and biases values."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                for tensor in (layer.weight, layer.running_var):
                    if tensor is not None:
                        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                for tensor in (layer.bias, layer.running_mean):
                    if tensor is not None:
                        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return module.eval()


def run_exact(module: nn.Module, shape: tuple[int, ...], *passes: Pass) -> PipelineResult:
    """Run passes on a traced module and prove the result; a failed proof is an error."""
    program = trace(lively(module), torch.zeros(shape))
    result = PassPipeline(passes).run(program)
    check(program, result.steps, result.program.module)
    return result


def remarks(result: PipelineResult | PassResult, kind: RemarkKind) -> dict[str, str]:
    return {r.node: r.reason for r in result.remarks if r.kind is kind}


def missed(result: PipelineResult | PassResult) -> dict[str, str]:
    return remarks(result, RemarkKind.MISSED)


def names(result: PipelineResult) -> list[str]:
    return [node.name for node in result.program.graph.nodes]


__all__ = ["Remark", "lively", "missed", "names", "remarks", "run_exact"]
