"""What soft filter pruning saves by the paper's count, which leaves residual trunks whole, and by ours."""

import pytest
import torch

from secateur.compiler import zoo
from secateur.compiler.capture import trace
from secateur.compiler.cost import layer_costs, measure
from secateur.compiler.program import Program
from secateur.passes.pipeline import PassPipeline

PAPER = {
    ("cifar-resnet20", 0.1): 15.2,
    ("cifar-resnet20", 0.2): 29.3,
    ("cifar-resnet20", 0.3): 42.2,
    ("cifar-resnet32", 0.1): 14.9,
    ("cifar-resnet32", 0.2): 28.8,
    ("cifar-resnet32", 0.3): 41.5,
    ("cifar-resnet56", 0.1): 14.7,
    ("cifar-resnet56", 0.2): 28.4,
    ("cifar-resnet56", 0.3): 41.1,
    ("cifar-resnet56", 0.4): 52.6,
    ("cifar-resnet110", 0.1): 14.6,
    ("cifar-resnet110", 0.2): 28.2,
    ("cifar-resnet110", 0.3): 40.8,
}
"""He et al., IJCAI 2018, table 1: per cent of the operations."""


def saved_by_the_papers_count(program: Program, rate: float) -> float:
    """First convolutions read a whole trunk (but the first block's), second ones what the first ones give."""
    kept, before, after = 1 - rate, 0.0, 0.0
    for cost in layer_costs(program):
        if cost.kind == "conv":
            both = cost.layer.endswith("conv2") or cost.layer.startswith("layer1.0.")
            before += cost.macs
            after += cost.macs * (kept**2 if both else kept)
    return 100 * (1 - after / before)


def program_of(name: str) -> Program:
    network = zoo.network(name)
    return trace(network.build().eval(), torch.zeros(network.input_shape))


@pytest.mark.parametrize(("name", "rate"), PAPER)
def test_the_papers_count_is_that_of_the_papers_networks(name: str, rate: float) -> None:
    assert saved_by_the_papers_count(program_of(name), rate) == pytest.approx(PAPER[name, rate], abs=0.05)


@pytest.mark.parametrize("rate", [0.125, 0.25])
def test_removing_the_trunk_too_saves_more(rate: float) -> None:
    program = program_of("cifar-resnet20")
    result = PassPipeline.parse(f"prune{{ratio={rate}}}").run(program, verify=False)
    saved = 100 * (1 - measure(result.program).macs / measure(program).macs)
    assert saved > saved_by_the_papers_count(program, rate) + 3
