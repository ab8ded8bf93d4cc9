"""Equalizing layers: the same function, equal ranges, and the pairs that are none."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.compiler.capture import trace
from secateur.compiler.quantized import QuantizedConv2d
from secateur.passes.base import PassResult
from secateur.passes.equalize import LARGEST_SCALE, Equalize
from secateur.passes.fold_bn import FoldBN
from support.exact import lively, missed, run_exact

SHAPE = (2, 6, 8, 8)


def sequence(*layers: nn.Module) -> nn.Sequential:
    """Return layers one after the other, weights and biases with channels of very different sizes."""
    generator = torch.Generator().manual_seed(3)
    module = nn.Sequential(*layers).eval()
    for parameter in module.parameters():
        shape = (len(parameter), *[1] * (parameter.ndim - 1))
        parameter.data.mul_(torch.exp(1.5 * torch.randn(shape, generator=generator)))
    return module


def conv(inputs: int, outputs: int, kernel: int = 1, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)  # pyright: ignore[reportArgumentType]


def outputs(layer: nn.Module) -> Tensor:
    """Return max |W| of every output channel."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().double().abs().flatten(1).amax(1)


def inputs(layer: nn.Module, channels: int) -> Tensor:
    """Return max |W| of every input channel, found channel by channel."""
    weight, groups = layer.weight, int(getattr(layer, "groups", 1))
    assert isinstance(weight, Tensor)
    blocks = weight.detach().double().abs().chunk(groups)
    width = channels // groups
    each = weight.shape[1] // width  # columns of one channel
    return torch.stack(
        [blocks[i // width][:, i % width * each : (i % width + 1) * each].max() for i in range(channels)]
    )


def spread(ranges: Tensor) -> float:
    return float(ranges.max() / ranges.min())


BETWEEN = {
    "nothing": (conv(6, 8, 3), conv(8, 4, 3)),
    "relu": (conv(6, 8, 3, bias=False), nn.ReLU(), conv(8, 4, 3, padding=1)),
    "leaky relu": (conv(6, 8), nn.LeakyReLU(0.2), conv(8, 4, 3, padding=1, padding_mode="reflect")),
    "dropout, identity": (conv(6, 8), nn.Dropout(), nn.Identity(), nn.Dropout2d(), conv(8, 4, bias=False)),
    "max pool": (conv(6, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), conv(8, 4)),
    "average pools": (conv(6, 8, 3), nn.AvgPool2d(2, padding=1), nn.AdaptiveAvgPool2d(2), conv(8, 4)),
    "grouped first": (conv(6, 8, 3, groups=2), nn.ReLU(), conv(8, 4)),
    "grouped second": (conv(6, 8), nn.ReLU(), conv(8, 12, 3, groups=4)),
    "depthwise second": (conv(6, 8), nn.ReLU(), conv(8, 8, 3, groups=8)),
    "depthwise, more outputs": (conv(6, 12, 3, groups=6), nn.ReLU(), conv(12, 5)),
    "linear": (nn.Flatten(), nn.Linear(384, 7), nn.ReLU(), nn.Linear(7, 5)),
    "linear, last axis": (nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 5)),
    "flattened positions": (conv(6, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5)),
    "global pool": (conv(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_the_two_ranges_of_every_channel_become_equal(name: str) -> None:
    module = sequence(*BETWEEN[name])
    first, second = (i for i, layer in enumerate(module) if hasattr(layer, "weight"))
    channels = len(outputs(module[first]))
    result = run_exact(module, SHAPE, Equalize())
    assert result.steps[0].stats == {"pairs": 1, "layers": 2}
    made = result.program.module
    one, two = outputs(made.get_submodule(str(first))), inputs(made.get_submodule(str(second)), channels)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=0.0)
    expected = (outputs(module[first]) * inputs(module[second], channels)).sqrt()
    torch.testing.assert_close(one, expected, rtol=1e-5, atol=0.0)


def test_functions_and_shapes_that_the_graph_computes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = conv(6, 8, 3), conv(8, 4, 3), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.leaky_relu(self.a(x), 0.1), 2).contiguous()
            x = F.dropout(self.b(x.relu_()), training=self.training)
            x = F.adaptive_max_pool2d(F.avg_pool2d(x, 2, 1), 2)
            return self.fc(x.view(x.size(0), -1))

    result = run_exact(Net(), (2, 6, 10, 10), Equalize())
    assert {r.node: r.reason for r in result.remarks} == {
        "a": "8 channels equalized with b",
        "b": "4 channels equalized with fc",
    }


def test_a_mean_over_positions_is_a_pool() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = conv(6, 8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.a(x).relu().mean((-2, -1), keepdim=True).squeeze(-1).squeeze(-1))

    assert run_exact(Net(), SHAPE, Equalize()).steps[0].stats == {"pairs": 1, "layers": 2}


def test_a_chain_settles_and_the_spread_of_its_ranges_shrinks() -> None:
    module = sequence(
        conv(6, 16, 3), nn.ReLU(), conv(16, 16, 3, groups=16), nn.ReLU(), conv(16, 24), nn.ReLU(), conv(24, 4)
    )
    result = run_exact(module, SHAPE, Equalize())
    assert result.steps[0].stats == {"pairs": 3, "layers": 4}
    before, after = (
        [module[i] for i in (0, 2, 4, 6)],
        [result.program.module.get_submodule(str(i)) for i in (0, 2, 4, 6)],
    )
    for one, two, width in zip(after, after[1:], (16, 16, 24), strict=False):
        torch.testing.assert_close(outputs(one), inputs(two, width), rtol=2e-2, atol=0.0)
    for old, new in zip(before[:3], after[:3], strict=True):
        assert spread(outputs(new)) < spread(outputs(old)) / 2
    # A depthwise layer has one range in both roles: all three become their geometric mean (Nagel et al., appendix A).
    depthwise = outputs(after[1])
    torch.testing.assert_close(outputs(after[0]), depthwise, rtol=2e-2, atol=0.0)


def test_what_is_equal_already_is_left_alone() -> None:
    program = trace(sequence(*BETWEEN["relu"]), torch.zeros(SHAPE))
    once = Equalize().run(program)
    again = Equalize().run(once.program)
    assert once.changed
    assert not again.changed
    assert again.program is once.program
    assert again.stats == {"pairs": 0, "layers": 0}


def test_dead_channels_keep_their_weights_and_scales_have_bounds() -> None:
    one, two = conv(6, 8), conv(8, 4)
    first, second = one.weight.data, two.weight.data
    first[0] = 0.0
    second[:, 1] = 0.0
    first[2] *= 1e-12
    second[:, 3] *= 1e-12
    result = run_exact(nn.Sequential(one, nn.ReLU(), two), SHAPE, Equalize())
    made = result.program.module.state_dict()
    for dead in (0, 1):
        assert torch.equal(made["0.weight"][dead], first[dead])
        assert torch.equal(made["2.weight"][:, dead], second[:, dead])
        assert one.bias is not None
        assert torch.equal(made["0.bias"][dead], one.bias[dead])
    torch.testing.assert_close(made["0.weight"][2], first[2] * LARGEST_SCALE)
    torch.testing.assert_close(made["0.weight"][3], first[3] / LARGEST_SCALE)


@pytest.mark.parametrize(
    ("between", "named"),
    [
        (nn.ReLU6(), "ReLU6"),
        (nn.Hardswish(), "Hardswish"),
        (nn.SiLU(), "SiLU"),
        (nn.GELU(), "GELU"),
        (nn.PReLU(), "PReLU"),
        (nn.GroupNorm(2, 8), "GroupNorm"),
    ],
)
def test_says_which_operation_blocks_a_pair(between: nn.Module, named: str) -> None:
    result = run_exact(nn.Sequential(conv(6, 8), between, nn.Hardtanh(), conv(8, 4)), SHAPE, Equalize())
    assert missed(result) == {"0": f"not equalized with 3: no scale is moved through {named} (1)"}
    assert not result.steps[0].changed


def test_batch_norms_are_to_be_folded_first() -> None:
    module = sequence(conv(6, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4))
    alone = run_exact(module, SHAPE, Equalize())
    assert missed(alone) == {
        "0": "not equalized with 3: no scale is moved through BatchNorm2d (1); fold batch norms first (fold-bn)"
    }
    folded = run_exact(module, SHAPE, FoldBN(), Equalize())
    assert missed(folded) == {}
    assert folded.steps[1].stats == {"pairs": 1, "layers": 2}


class Joined(nn.Module):
    """Two convolutions, joined by an expression."""

    def __init__(self, expression: str) -> None:
        super().__init__()
        self.a, self.b, self.tied = conv(6, 6), conv(6, 6), conv(6, 6)
        self.tied.weight = self.b.weight
        self.fc = nn.Linear(8, 3)
        self.expression = expression

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = eval(self.expression, {"F": F, "torch": torch, "self": self, "x": x})
        return found


@pytest.mark.parametrize(
    "expression",
    [
        "self.b(F.relu(self.a(x)) + x)",
        "(lambda y: self.b(y) + y)(F.relu(self.a(x)))",
        "(lambda y: self.b(F.relu(y)) * y.mean())(self.a(x))",
        "self.b(self.a(self.a(x)))",
        "self.tied(self.a(self.b(self.b(x))))",
        "self.tied(F.relu(self.a(x))) + self.b(x)",
        "self.a(F.conv2d(self.a(x), self.b.weight))",
        "self.b(torch.cat([self.a(x)[:, :3], x[:, 3:]], 1))",
        "self.b(self.a(x).roll(1, 1))",
        "self.b(self.a(x).transpose(1, 2)[:, :6].contiguous())",
        "self.b(self.a(x).reshape(x.size(0), 8, 6, 8)[:, :6])",
        "self.b(self.a(x).reshape(x.size(0), 8, 6, 8).reshape(x.size(0), 6, 8, 8))",
        "self.b(F.max_pool3d(self.a(x), (3, 1, 1), 1, (1, 0, 0)))",
        "self.b(self.a(x).mean(1, keepdim=True).expand(-1, 6, -1, -1))",
        "self.b(x.type_as(self.a(x)))",
        "self.fc(self.a(x))",
        "self.fc(self.a(x).mean((1, 3)))",
        "torch.relu(self.a(x))",
    ],
)
def test_is_silent_where_there_is_no_pair(expression: str) -> None:
    result = run_exact(Joined(expression), SHAPE, Equalize())
    assert result.remarks == ()
    assert result.steps[0].stats == {"pairs": 0, "layers": 0}


def test_integer_weights_are_left_alone() -> None:
    integers = QuantizedConv2d(8, 4, 1)
    integers.weight.data += torch.arange(1, 9, dtype=torch.int8).reshape(1, 8, 1, 1)
    module = nn.Sequential(conv(6, 8), nn.ReLU(), integers, nn.ReLU(), conv(4, 3))
    result = Equalize().run(trace(module.eval(), torch.zeros(SHAPE)))
    assert not result.changed
    assert result.remarks == ()


def test_the_program_given_stays_as_it_is_and_dtypes_too() -> None:
    module = lively(sequence(*BETWEEN["relu"]).to(torch.bfloat16))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result: PassResult = Equalize().run(trace(module, torch.zeros(SHAPE, dtype=torch.bfloat16)))
    assert result.changed
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert {tensor.dtype for tensor in result.program.module.state_dict().values()} == {torch.bfloat16}
