"""Measuring batch-norm statistics again."""

from typing import Any

import torch
from torch import Tensor, nn

from secateur.compiler.capture import trace
from secateur.passes.compensate.reestimate_bn import ReestimateBN
from secateur.passes.pipeline import PassPipeline
from secateur.passes.prune.prune import Prune
from support.compensation import images, mended, missed
from support.exact import lively

DATA = [images(24, 3, 8, 8, seed=s) for s in range(3)]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, o in ((3, 8), (8, 8), (8, 4)):
        layers += [nn.Conv2d(i, o, 3, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def test_every_norm_behind_pruned_channels_normalises_again() -> None:
    result = mended(net(), DATA, {"layers": {"0": 0.5}}, ReestimateBN(data=DATA))
    pruned, repaired = (step.program.module.eval() for step in result.steps)
    assert torch.equal(pruned.get_buffer("1.running_mean"), repaired.get_buffer("1.running_mean")), "not behind"
    x = torch.cat(DATA)
    for first, last in ((0, 4), (4, 7)):
        with torch.no_grad():
            for index in range(first, last):
                x = repaired.get_submodule(str(index))(x)
        norm: Any = repaired.get_submodule(str(last))
        torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, x.movedim(1, 0).flatten(1).var(1))
    assert result.steps[1].stats["norms"] == 2
    assert result.steps[1].stats["output_error_after"] != result.steps[1].stats["output_error_before"]


def test_statistics_that_were_right_stay() -> None:
    """Channels that nobody reads go, and the norms remember the same data."""
    module = net()
    lively(module)
    with torch.no_grad():
        module.get_parameter("3.weight")[:, 4:] = 0.0
        module.get_parameter("0.weight")[4:] = 0.0
        x = torch.cat(DATA)
        for layer in module:
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean, layer.running_var = x.mean((0, 2, 3)), x.movedim(1, 0).flatten(1).var(1)
            x = layer(x)
    program = trace(module, torch.zeros(1, 3, 8, 8))
    pruned, repaired = PassPipeline([Prune(layers={"0": 0.5}), ReestimateBN(data=DATA)]).run(program).steps
    for name, tensor in pruned.program.module.state_dict().items():
        torch.testing.assert_close(repaired.program.module.state_dict()[name], tensor, rtol=1e-4, atol=1e-4)


def test_norms_without_statistics_and_nets_without_norms() -> None:
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    free = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), norm, nn.Conv2d(8, 4, 3), nn.Flatten())
    step = mended(free, DATA, {"ratio": 0.5}, ReestimateBN(data=DATA)).steps[1]
    assert not step.changed
    assert missed(step) == {
        "2": "not measured: it keeps no running statistics of its own",
        "": "no batch norm stands behind pruned channels",
    }


def test_a_norm_that_is_called_twice_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(i, 8, 1) for i in (3, 8, 8))
            self.bn = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.c(self.bn(self.b(torch.relu(self.a(x)))))).flatten(1)

    step = mended(Twice(), DATA, {"ratio": 0.5}, ReestimateBN(data=DATA)).steps[1]
    assert missed(step)["bn"] == "not measured: it is called more than once, or shares its tensors"
