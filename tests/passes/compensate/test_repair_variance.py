"""Giving channels their mean and variance back."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.program import Program
from secateur.passes.compensate.repair_variance import RepairVariance
from support.compensation import images, mended, missed

DATA = [images(24, 3, 8, 8, seed=s) for s in range(2)]

LAYERS = {
    "norm": [nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6)],
    "norm without scale": [nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False)],
    "conv": [nn.Conv2d(8, 6, 3)],
    "conv without bias": [nn.Conv2d(8, 6, 3, bias=False)],
    "grouped": [nn.Conv2d(8, 6, 3, groups=2)],
}


def at(program: Program, path: str) -> Tensor:
    """What a layer gives on all data."""
    found: list[Tensor] = []

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output)

    handle = program.module.get_submodule(path).register_forward_hook(note)
    with torch.no_grad():
        program.module.eval()(torch.cat(DATA))
    handle.remove()
    return found[0].double().movedim(1, 0).flatten(1)


@pytest.mark.parametrize("name", LAYERS)
def test_means_and_variances_are_those_of_the_dense_program(name: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *LAYERS[name], nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten())
    result = mended(module, DATA, {"layers": {"0": 0.5}}, RepairVariance(data=DATA))
    dense, pruned, repaired = result.steps[0].before, result.steps[0].program, result.program
    last = len(module) - 2
    for path in (str(1 + len(LAYERS[name])), str(last)):
        wanted, broken, found = at(dense, path), at(pruned, path), at(repaired, path)
        torch.testing.assert_close(found.mean(1), wanted.mean(1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.std(1), wanted.std(1), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(broken.std(1), wanted.std(1), rtol=1e-2)
    assert result.steps[1].stats["layers"] == 2
    assert result.steps[1].stats["output_error_after"] < result.steps[1].stats["output_error_before"]


def test_a_channel_that_became_constant_gets_its_mean() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten())
    with torch.no_grad():
        module.get_parameter("0.weight")[2:] *= 0.01
        module.get_parameter("2.weight")[0, :2] = 0.0  # reads only what goes
        module.get_parameter("2.weight")[:, 2:] *= 0.01
    result = mended(module, DATA, {"layers": {"0": 0.5}}, RepairVariance(data=DATA))
    wanted, found = at(result.steps[0].before, "2"), at(result.program, "2")
    torch.testing.assert_close(found.mean(1), wanted.mean(1), rtol=1e-4, atol=1e-5)
    assert found[0].std() == 0


def test_nothing_behind() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten())
    step = mended(module, DATA, {"ratio": 0.0}, RepairVariance(data=DATA)).steps[1]
    assert not step.changed
    assert missed(step) == {"": "no layer reads pruned channels"}
