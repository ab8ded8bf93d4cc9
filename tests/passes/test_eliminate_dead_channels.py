"""Dead channels go, and what is left computes the same, case by case (any network: tests/test_dead_channels.py)."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.backends.compile import compile as compile_model
from secateur.compiler.capture import trace
from secateur.compiler.quantized import QuantizedConv2d
from secateur.passes import eliminate_dead_channels
from secateur.passes.base import RemarkKind
from secateur.passes.eliminate_dead_channels import EliminateDeadChannels
from secateur.passes.pipeline import PassPipeline
from secateur.passes.prune.prune import Prune
from support.eliminating import EXACT, Border, eliminate, remarks
from support.killing import difference
from support.pruning import plan_of, widths


class Net(nn.Module):
    """A forward function and its layers."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.of = forward

    def forward(self, x: Tensor) -> Any:
        return self.of(self, x)


def norm(width: int, **betas: float) -> nn.BatchNorm2d:
    """A batch norm of random statistics; ``_2=0.5`` makes channel 2 the constant 0.5."""
    layer = nn.BatchNorm2d(width)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_()
        layer.running_mean = torch.randn(width)
        layer.running_var = torch.rand(width) + 0.5
        for name, beta in betas.items():
            layer.weight[int(name[1:])], layer.bias[int(name[1:])] = 0.0, beta
    return layer


def plain(kernel: int, **betas: float) -> Net:
    return Net(
        lambda self, x: self.b(F.relu(self.norm(self.a(x)))),
        a=nn.Conv2d(3, 6, 3, padding=1, bias=False),
        norm=norm(6, **betas),
        b=nn.Conv2d(6, 4, kernel, padding=kernel // 2, bias=False),
    )


def test_a_scale_of_zero_kills_a_channel() -> None:
    result = eliminate(plain(1, _1=-1.0, _4=0.5))
    module = result.program.module
    assert plan_of(result).kept["a.weight"] == {0: [0, 2, 3, 5]}
    assert plan_of(result).kept["b.weight"] == {1: [0, 2, 3, 5]}
    assert result.stats["removed"] == 2
    assert widths(result) == {"a": 4, "b": 4}
    assert module.get_submodule("a").get_parameter("weight").shape == (4, 3, 3, 3)
    assert module.get_submodule("norm").get_parameter("weight").shape == (4,)
    assert remarks(result, RemarkKind.APPLIED) == {
        "a": ["2 of 6 output channels are constant or unread: removed"],
        "b": ["1 constant input channel moved into its new bias"],
    }
    assert "b.bias" not in plan_of(result).kept, "a plan speaks of the original's tensors"


def test_a_negative_shift_dies_in_the_activation_so_padding_does_not_matter() -> None:
    result = eliminate(plain(3, _1=-1.0, _4=-0.5))
    assert result.stats["removed"] == 2
    assert "bias" not in {
        name.rpartition(".")[2] for name in dict(result.program.module.get_submodule("b").named_parameters())
    }


def test_a_constant_in_front_of_zero_padding_stays() -> None:
    result = eliminate(plain(3, _1=-1.0, _4=0.5, _5=0.25))
    assert plan_of(result).kept["a.weight"] == {0: [0, 2, 3, 4, 5]}
    (reason,) = remarks(result, RemarkKind.MISSED)["a"]
    assert reason.startswith("2 constant channels stay: b (node b) pads with zeros")


def test_or_one_of_them_carries_the_borders_of_all() -> None:
    result = eliminate(plain(3, _1=-1.0, _3=0.125, _4=0.5, _5=0.25), border="merge")
    assert plan_of(result).kept["a.weight"] == {0: [0, 2, 4]}
    (reason,) = remarks(result, RemarkKind.MISSED)["a"]
    assert reason == "1 constant channel stays: it carries the borders of the other constants to b"
    assert remarks(result, RemarkKind.APPLIED)["b"] == ["2 constant input channels merged into what stays"]
    assert not eliminate(plain(3, _4=0.5), border="merge").changed, "one alone has nobody to carry it"


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_paddings_keep_a_constant_constant(mode: Any) -> None:
    net = plain(3, _4=0.5)
    net.b = nn.Conv2d(6, 4, 3, padding=1, padding_mode=mode)
    result = eliminate(net)
    assert result.stats["removed"] == 1
    assert remarks(result, RemarkKind.APPLIED)["b"] == ["1 constant input channel moved into its bias"]


def test_a_row_of_zeros_is_a_constant_channel() -> None:
    net = Net(lambda self, x: self.b(self.a(x)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        net.get_parameter("a.weight")[[1, 2]] = 0.0
    assert plan_of(eliminate(net)).kept["a.weight"] == {0: [0, 3]}


def test_what_nobody_reads_goes_and_takes_along_what_it_alone_reads() -> None:
    net = Net(
        lambda self, x: self.c(self.b(F.relu(self.a(x)))),
        a=nn.Conv2d(3, 6, 3, padding=1),
        b=nn.Conv2d(6, 5, 3, padding=1),
        c=nn.Conv2d(5, 4, 3, padding=1),
    )
    with torch.no_grad():
        net.get_parameter("c.weight")[:, 2] = 0.0
        net.get_parameter("b.weight")[[0, 1, 3, 4], 5] = 0.0  # channel 5 is read by row 2 only
    result = eliminate(net)
    assert plan_of(result).kept["b.weight"] == {0: [0, 1, 3, 4], 1: [0, 1, 2, 3, 4]}


def residual(first: nn.BatchNorm2d, second: nn.BatchNorm2d) -> Net:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.a(x)))
        return self.head(F.relu(x + self.second(self.b(x))).mean((2, 3)))

    return Net(
        forward,
        a=nn.Conv2d(3, 6, 3, padding=1),
        first=first,
        b=nn.Conv2d(6, 6, 3, padding=1, bias=False),
        second=second,
        head=nn.Linear(6, 2),
    )


def test_a_residual_channel_goes_if_it_is_dead_on_both_sides() -> None:
    result = eliminate(residual(norm(6, _1=-1.0, _2=-1.0), norm(6, _1=0.5, _4=-1.0)))
    assert plan_of(result).kept["a.weight"] == {0: [0, 2, 3, 4, 5]}
    assert plan_of(result).kept["head.weight"] == {1: [0, 2, 3, 4, 5]}
    assert widths(result)["a"] == 5


def test_a_sum_of_constants_in_front_of_padding_stays_for_the_layer_that_pads() -> None:
    result = eliminate(residual(norm(6, _1=1.0), norm(6, _1=0.5)))
    assert not result.changed
    assert "b (node b) pads with zeros" in remarks(result, RemarkKind.MISSED)["a"][0]


def test_a_gate_of_zero_kills_and_another_constant_does_not() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.norm(self.a(x))
        gate = F.hardsigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.b(x * gate)

    net = Net(
        forward,
        a=nn.Conv2d(3, 6, 1),
        norm=norm(6, _0=0.0, _1=0.75),
        down=nn.Conv2d(6, 3, 1),
        up=nn.Conv2d(3, 6, 1),
        b=nn.Conv2d(6, 4, 1),
    )
    with torch.no_grad():
        net.get_parameter("up.weight")[[1, 2]] = 0.0
        net.get_parameter("up.bias")[2] = -4.0
    # 0: constant 0; 1: a constant times a constant; 2: multiplied by hardsigmoid(-4) = 0, but read before that.
    result = eliminate(net)
    assert plan_of(result).kept["a.weight"] == {0: [2, 3, 4, 5]}
    with torch.no_grad():
        net.get_parameter("down.weight")[:, 2] = 0.0
    assert plan_of(eliminate(net)).kept["a.weight"] == {0: [3, 4, 5]}


def test_depthwise_layers_hand_dead_channels_on() -> None:
    net = Net(
        lambda self, x: self.b(F.relu6(self.second(self.deep(F.relu6(self.first(self.a(x))))))),
        a=nn.Conv2d(3, 6, 1),
        first=norm(6, _0=0.5, _1=-0.5),
        deep=nn.Conv2d(6, 6, 3, padding=1, groups=6),
        second=norm(6, _3=0.5),
        b=nn.Conv2d(6, 4, 1),
    )
    result = eliminate(net)
    # 0 has another value at the border, so it is not constant behind the padding; 1 is zero before it, 3 dies after it.
    assert plan_of(result).kept["deep.weight"] == {0: [0, 2, 4, 5]}
    assert result.program.owner("deep").groups == 4


def grouped(**betas: float) -> Net:
    return Net(
        lambda self, x: self.b(F.relu(self.mid(F.relu(self.norm(self.a(x)))))),
        a=nn.Conv2d(3, 8, 1),
        norm=norm(8, **betas),
        mid=nn.Conv2d(8, 8, 3, padding=1, groups=2),
        b=nn.Conv2d(8, 4, 1),
    )


def test_groups_keep_equal_counts() -> None:
    result = eliminate(grouped(_0=-1.0, _1=-1.0, _6=-1.0))
    assert plan_of(result).kept["mid.weight"] == {1: [[0, 2, 3], [0, 1, 3]]}
    (reason,) = remarks(result, RemarkKind.MISSED)["a"]
    assert reason == "1 constant channel stays: a grouped convolution needs as many channels in every group"
    assert not eliminate(grouped(_0=-1.0)).changed


def test_a_group_that_gives_constants_only_goes_whole() -> None:
    net = grouped(_0=-1.0, _1=-1.0, _2=-1.0, _3=-1.0)
    result = eliminate(net)
    assert plan_of(result).kept["mid.weight"] == {0: [4, 5, 6, 7]}
    assert result.program.owner("mid").groups == 1


def test_groups_carry_their_own_borders() -> None:
    result = eliminate(grouped(_0=0.5, _1=0.25, _4=0.125, _6=1.0), border="merge")
    assert plan_of(result).kept["mid.weight"] == {1: [[0, 2, 3], [1, 2, 3]]}


def test_a_dense_block_reads_each_constant_in_its_own_way() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.cat([x, self.b(F.relu(self.n1(x)))], 1)
        return self.c(F.relu(self.n2(x)))

    net = Net(forward, a=nn.Conv2d(3, 6, 1), n1=norm(6), b=nn.Conv2d(6, 4, 1), n2=norm(10), c=nn.Conv2d(10, 4, 1))
    with torch.no_grad():
        net.get_parameter("a.weight")[1] = 0.0
        net.get_parameter("n2.weight")[[3, 7]] = 0.0
    result = eliminate(net)
    assert plan_of(result).kept["a.weight"] == {0: [0, 2, 3, 4, 5]}
    assert plan_of(result).kept["b.weight"] == {0: [0, 2, 3], 1: [0, 2, 3, 4, 5]}, "7 is row 1 of b; 3 lives in n1"


def test_a_shuffle_moves_constants() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        first, second = x.chunk(2, 1)
        return torch.cat([self.b(first), second], 1).mean((2, 3)) @ torch.ones(7, 2, dtype=x.dtype)

    net = Net(forward, a=nn.Conv2d(3, 8, 1), norm=norm(8, _1=0.5, _7=0.5), b=nn.Conv2d(4, 3, 1))
    # Shuffled: 0 4 1 5 | 2 6 3 7, and the second half is read by a product that takes no notice of channels.
    assert plan_of(eliminate(net)).kept["b.weight"] == {1: [0, 1, 3]}


def test_statistics_over_channels_need_them_all() -> None:
    net = Net(
        lambda self, x: self.b(self.over(self.norm(self.a(x)))),
        a=nn.Conv2d(3, 6, 1),
        norm=norm(6, _1=0.5),
        over=nn.GroupNorm(1, 6),
        b=nn.Conv2d(6, 4, 1),
    )
    result = eliminate(net)
    assert not result.changed
    assert result.program.name == "Net"
    with torch.no_grad():
        net.get_parameter("b.weight")[:, 2] = 0.0
    assert not eliminate(net).changed


def test_outputs_stay_with_the_reason() -> None:
    net = Net(
        lambda self, x: (F.relu(self.a(x)), self.b(F.relu(self.a(x)))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1)
    )
    with torch.no_grad():
        net.get_parameter("a.weight")[1] = 0.0
    result = eliminate(net)
    assert not result.changed
    assert remarks(result, RemarkKind.MISSED) == {
        "a": ["1 constant channel stays: the model's output (node output)"],
    }


def test_a_layer_with_nothing_alive_keeps_one_channel() -> None:
    net = Net(lambda self, x: self.b(F.relu(self.a(x))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net.get_parameter("a.weight").zero_()
        net.get_parameter("a.bias").fill_(0.5)
    result = eliminate(net)
    assert widths(result) == {"a": 1, "b": 2}
    assert remarks(result, RemarkKind.MISSED)["a"] == [
        "1 constant channel stays: a tensor would be left without channels"
    ]


def test_a_layer_that_is_called_twice_takes_in_zeros_only() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.relu(self.norm(self.a(x)))) + self.b(F.relu(self.norm(self.a(x * 2))))

    layers = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 4, 1)}
    assert eliminate(Net(forward, norm=norm(6, _1=-0.5), **layers)).stats["removed"] == 1
    result = eliminate(Net(forward, norm=norm(6, _1=0.5), **layers))
    assert not result.changed
    assert "cannot take it in: it is called more than once" in remarks(result, RemarkKind.MISSED)["a"][0]


def test_nothing_dead_changes_nothing() -> None:
    program = trace(plain(3).double().eval(), torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    result = EliminateDeadChannels().run(program)
    assert not result.changed
    assert result.program is program
    assert result.stats["removed"] == 0
    assert not result.remarks


def test_what_comes_out_trains() -> None:
    module = copy.deepcopy(eliminate(plain(1, _1=0.5)).program.module).train()
    module(torch.randn(2, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert {name for name, _ in module.named_parameters()} == {
        *("a.weight", "norm.weight", "norm.bias", "b.weight", "b.bias")
    }


@pytest.mark.parametrize("border", ["refuse", "merge"])
def test_pipelines_prove_it_beside_other_passes(border: Border) -> None:
    net = plain(3, _0=-0.5, _1=0.5, _2=0.25).eval()
    passes = PassPipeline([Prune(ratio=0.1), EliminateDeadChannels(border=border), Prune(layers={"a": 0.3})])
    compiled = compile_model(net, torch.zeros(1, 3, 8, 8), pipeline=passes)
    assert compiled.report["verification"]["holds"]
    assert set(compiled.plan.kept) <= set(net.state_dict())


def test_the_proof_sees_a_wrong_constant() -> None:
    net = plain(1, _4=0.5).double().eval()
    program = trace(net, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    module = copy.deepcopy(EliminateDeadChannels().run(program).program.module)
    assert difference(net, module, torch.randn(2, 3, 8, 8, dtype=torch.float64)) <= EXACT
    with torch.no_grad():
        module.get_parameter("b.bias").mul_(1.001)
    assert difference(net, module, torch.randn(2, 3, 8, 8, dtype=torch.float64)) > EXACT


def test_quantized_layers_take_in_zeros_only() -> None:
    net = plain(1, _1=-0.5, _4=0.5)
    net.b = QuantizedConv2d(6, 4, 1, bias=False)
    net.b.weight.random_(-100, 100)
    result = eliminate(net)
    assert plan_of(result).kept["a.weight"] == {0: [0, 2, 3, 4, 5]}
    assert "b (node b) cannot take it in: its weight is quantized" in remarks(result, RemarkKind.MISSED)["a"][0]


def test_an_operation_that_this_pass_has_not_heard_of_keeps_its_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    known = eliminate_dead_channels._UNMIXED
    monkeypatch.setattr(eliminate_dead_channels, "_UNMIXED", known - {"unary"})
    result = eliminate(plain(1, _1=-0.5))
    assert not result.changed
    assert remarks(result, RemarkKind.MISSED)["a"] == ["1 constant channel stays: read by 'unary' (node relu)"]
