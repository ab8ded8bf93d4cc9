"""Moving the mean of removed channels into biases."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.capture import trace
from secateur.passes.compensate.absorb import Absorb
from secateur.passes.pipeline import PassPipeline
from secateur.passes.prune.prune import Prune
from support.compensation import error, images, mended, missed

DATA = [images(24, 3, 8, 8, seed=s) for s in range(2)]


def constant(last: nn.Module, channels: int = 8) -> nn.Sequential:
    """A net whose channels 4 to 7 are constant: norms of scale 0 with a bias."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), last)
    return module


def without_variance(module: nn.Module) -> nn.Module:
    norm: Any = module.get_submodule("1")
    with torch.no_grad():
        norm.weight[4:] = 0.0
        norm.bias[4:] = torch.tensor([1.0, 2.0, -1.0, 3.0])
    return module


READERS = {
    "conv": nn.Conv2d(8, 5, 3),
    "conv without bias": nn.Conv2d(8, 5, 3, stride=2, bias=False),
    "conv in front of a norm": nn.Sequential(nn.Conv2d(8, 5, 1, bias=False), nn.BatchNorm2d(5)),
    "grouped": nn.Conv2d(8, 6, 3, groups=2),
}


def program_of(module: nn.Module) -> Any:
    return trace(module.eval(), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("data", [DATA, None])
def test_constant_channels_are_made_up_for_exactly(name: str, data: list[Tensor] | None) -> None:
    module = without_variance(constant(READERS[name]))
    if name == "grouped":  # equal counts per group: the constant channels are 2, 3, 6 and 7 then
        norm: Any = module.get_submodule("1")
        with torch.no_grad():
            order = [0, 1, 4, 5, 2, 3, 6, 7]
            norm.weight.copy_(norm.weight[order])
            norm.bias.copy_(norm.bias[order])
    dense = program_of(module)
    steps = PassPipeline([Prune(layers={"0": 0.5}, criterion="bn-scale"), Absorb(data=data)]).run(dense).steps
    pruned, repaired = (step.program for step in steps)
    assert error(pruned, dense, DATA[0]) > 0.1
    assert error(repaired, dense, DATA[0]) < 1e-5


def test_a_border_counts_with_its_share() -> None:
    """A 3x3 kernel of ones over a constant 2 on 4x4 positions: 4, 6 or 9 taps see it, 100 in 16 positions."""
    module = without_variance(constant(nn.Conv2d(8, 1, 3, padding=1, bias=False)))
    with torch.no_grad():
        module.get_parameter("3.weight").fill_(1.0)
    dense = trace(module.eval(), torch.zeros(1, 3, 6, 6))
    data = [images(4, 3, 6, 6)]
    for given in (data, None):
        result = PassPipeline([Prune(layers={"0": 0.5}, criterion="bn-scale"), Absorb(data=given)]).run(dense)
        bias = result.program.module.get_parameter("3.bias")
        torch.testing.assert_close(bias.detach(), torch.tensor([(1.0 + 2.0 + 0.0 + 3.0) * 100 / 16]))


def test_the_mean_of_a_clipped_normal() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False))
    with torch.no_grad():
        module.get_parameter("1.weight").copy_(torch.tensor([3.0, -0.5]))
        module.get_parameter("1.bias").copy_(torch.tensor([1.0, 0.25]))
        module.get_parameter("3.weight").copy_(torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1))
    result = PassPipeline([Prune(layers={"0": 0.5}, criterion="bn-scale"), Absorb()]).run(program_of(module))
    phi, distribution = math.exp(-0.125) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    expected = 2.0 * (0.25 * distribution + 0.5 * phi)
    assert result.program.module.get_parameter("3.bias").item() == pytest.approx(expected)


def test_measured_means_lessen_the_error() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Flatten())
    result = mended(module, DATA, {"layers": {"0": 0.5}}, Absorb(data=DATA))
    stats = result.steps[1].stats
    assert stats["layers"] == 1
    assert stats["output_error_after"] < 0.8 * stats["output_error_before"]


def test_without_data_unknown_means_are_not_guessed() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 6, 3), nn.Flatten())
    step = mended(module, DATA, {"ratio": 0.5}, Absorb()).steps[1]
    assert not step.changed
    assert missed(step)["2"] == (
        "nothing is absorbed: without data, means are known behind a batch norm (and a ReLU) only"
    )
