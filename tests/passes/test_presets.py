"""Published choices give the published costs."""

from functools import cache

import pytest
import torch

from secateur.compiler import sources
from secateur.compiler.capture import trace
from secateur.compiler.cost import Cost, layer_costs, measure
from secateur.compiler.program import Program
from secateur.passes.pipeline import PassPipeline


@cache
def program_of(name: str) -> Program:
    source = sources.resolve(name)
    return trace(source.module, torch.zeros(source.input_shapes[0]))


def pruned(name: str, preset: str) -> Program:
    return PassPipeline.parse(preset).run(program_of(name), verify=False).program


def cost(name: str, preset: str) -> Cost:
    return measure(pruned(name, preset))


@pytest.mark.parametrize("name", ["cifar-vgg16-4096", "cifar-vgg16-pfec"])
def test_pruned_a_of_vgg16(name: str) -> None:
    costs = layer_costs(pruned(name, "@pfec-vgg16-a"))
    convolutions = sum(c.macs for c in costs if c.kind == "conv")
    assert convolutions == pytest.approx(206.1e6, rel=1e-3)
    assert [c.outputs for c in costs if c.kind == "conv"] == [32, 64, 128, 128, *[256] * 9]


def test_pruned_a_has_the_published_number_of_parameters() -> None:
    """5,398,666, and a norm between the linear layers."""
    assert cost("cifar-vgg16-pfec", "@pfec-vgg16-a").params == 5_398_666 + 1024


def test_pruned_a_with_the_large_head_has_the_published_size() -> None:
    """90,399 KiB of parameters and running statistics."""
    kib = cost("cifar-vgg16-4096", "@pfec-vgg16-a").bytes / 1024
    assert kib == pytest.approx(90_399, abs=1)


@pytest.mark.parametrize(
    ("name", "preset", "macs"),
    [
        ("cifar-resnet56", "@pfec-resnet56-a", 1.12e8),
        ("cifar-resnet56", "@pfec-resnet56-b", 9.09e7),
        ("cifar-resnet110", "@pfec-resnet110-a", 2.13e8),
        ("cifar-resnet110", "@pfec-resnet110-b", 1.55e8),
        ("resnet34", "@pfec-resnet34-a", 3.08e9),
        ("resnet34", "@pfec-resnet34-b", 2.76e9),
        ("resnet34", "@pfec-resnet34-c", 3.37e9),
    ],
)
def test_residual_networks_cost_what_was_published(name: str, preset: str, macs: float) -> None:
    assert cost(name, preset).macs == pytest.approx(macs, rel=0.01)
