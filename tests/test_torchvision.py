"""The ratchet over whole torchvision models: what is prunable, and that pruning is exact. Run with ``-m slow``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from secateur.compiler import vision
from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.cost import measure
from secateur.compiler.proof import prove
from secateur.passes.prune.prune import Prune

MODELS = (
    "alexnet convnext_tiny deeplabv3_mobilenet_v3_large densenet121 efficientnet_b0 googlenet inception_v3 maxvit_t "
    "mnasnet1_0 mobilenet_v2 mobilenet_v3_large quantized_shufflenet_v2_x0_5 r3d_18 regnet_y_400mf resnet18 resnet50 "
    "resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_1 swin_t swin_v2_t vgg11_bn vit_b_32"
).split()

pytestmark = pytest.mark.slow


def shape_of(name: str) -> tuple[int, ...]:
    """A small input that the model takes."""
    if name == "r3d_18":
        return (1, 3, 8, 32, 32)
    size = 299 if name == "inception_v3" else 224 if name in ("alexnet", "maxvit_t", "vgg11_bn", "vit_b_32") else 64
    return (1, 3, size, size)


@pytest.mark.parametrize("name", MODELS)
def test_half_of_the_macs(name: str) -> None:
    """Within 1 % of the budget, and equal to the masked original."""
    program = trace(vision.build_model(name).eval(), torch.zeros(shape_of(name)))
    result = Prune(macs=0.5).run(program)
    assert abs(measure(result.program).macs / measure(program).macs - 0.5) <= 0.01
    assert result.plan is not None
    proof = prove(program, result.program.module, result.plan)
    assert proof.holds
    assert not proof.vacuous


def test_what_is_prunable(golden: Callable[[str, str], None]) -> None:
    """Groups, channels, and how many of them may go: a rule that gets weaker or stronger shows here."""
    rows = [f"{'model':<30} {'groups':>6} {'channels':>8} {'prunable':>8}"]
    for name in MODELS:
        deps = analyze(trace(vision.build_model(name).eval(), torch.zeros(shape_of(name))))
        groups = [g for g in deps.groups if g.layers]
        channels, prunable = sum(g.width for g in groups), sum(g.prunable for g in groups)
        rows.append(f"{name:<30} {len(groups):>6} {channels:>8} {prunable:>8}")
    golden("torchvision", "\n".join(rows) + "\n")
