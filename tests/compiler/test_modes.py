"""Models whose modes differ in flags: one graph, which trains as the model does; and norms in it that are layers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.backends.artefact import load
from secateur.backends.compile import compile as compile_model
from secateur.compiler.capture import trace

INPUT = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class NormAct(nn.BatchNorm2d):
    """A batch norm that counts and branches in code of its own, and holds what comes behind it."""

    def __init__(self, channels: int, act: nn.Module | None = None, momentum: float | None = 0.1) -> None:
        super().__init__(channels, momentum=momentum)
        self.drop, self.act = nn.Identity(), act or nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        torch._assert(input.ndim == 4, f"four axes, and not {input.ndim}")
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        batch = True if self.training else self.running_mean is None
        tensors = self.running_mean, self.running_var, self.weight, self.bias
        return self.act(self.drop(F.batch_norm(input, *tensors, batch, factor, self.eps)))


class Net(nn.Module):
    def __init__(self, act: nn.Module | None = None, momentum: float | None = 0.1, sized: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), NormAct(8, act, momentum)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), NormAct(8)
        self.fc = nn.Linear(8, 5)
        self.sized = sized

    def forward(self, x: Tensor) -> Tensor:
        if self.sized and x.shape[-1] < 3:
            x = F.pad(x, (1, 1))
        x = self.bn1(self.conv1(x))
        return self.fc(self.bn2(self.conv2(x)).mean((2, 3)))


class Attention(nn.Module):
    """Dropout of attention by a number that is nothing in both modes; a cache in evaluation."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 5)
        self.bias = nn.Parameter(torch.randn(9))
        self.drop = nn.Dropout(rate)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).unflatten(2, (-1, 12)).mean(1)).chunk(3, -1)
        if self.training:
            shift = self.bias[:1] + 1
        else:
            if "shift" not in self.cache:
                self.cache["shift"] = self.bias[:1] + 1
            shift = self.cache["shift"]
        y = F.scaled_dot_product_attention(q, k, v + shift, dropout_p=self.drop.p if self.training else 0.0)
        return self.out(y.mean(1))


def trained(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    torch.manual_seed(3)
    return model.train()(x), {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (Net, 8),
        (lambda: Net(sized=True), 8),
        (lambda: Net(nn.PReLU(8)), 8),
        (Attention, 6),
        (lambda: Attention(0.3), 6),
    ],
    ids=["norms", "sized", "state below a norm", "attention", "dropout of attention"],
)
def test_what_branches_on_training_trains_as_the_model_does(make: Any, size: int) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), INPUT[..., :size, :size]
    original = copy.deepcopy(model)
    program = trace(model, x)
    assert not [note for note in program.notes if "training" in note]
    torch.testing.assert_close(program.module.eval()(x), original(x))
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), original.state_dict().values(), strict=True)
    )
    (found, after), (wanted, state) = trained(program.module, x), trained(original, x)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(after, {name: state[name] for name in after})
    torch.testing.assert_close(program.module.eval()(x), original.eval()(x))


def test_a_number_that_is_nothing_in_evaluation_is_written_as_such(tmp_path: Path) -> None:
    made = compile_model(Attention(0.3).eval(), INPUT[..., :6, :6], pipeline="prune{ratio=0.5}")
    made.save(tmp_path / "net")
    assert "dropout_p=self.training * 0.3" in (tmp_path / "net" / "model.py").read_text()
    module = load(tmp_path / "net").train()
    assert not torch.equal(module(INPUT[..., :6, :6]), module(INPUT[..., :6, :6]))


def test_norms_that_hold_more_are_layers_and_fold() -> None:
    program = trace(Net().eval(), INPUT)
    layers = {str(n.target): type(program.owner(str(n.target))) for n in program.graph.nodes if n.op == "call_module"}
    assert layers["bn1"] is nn.BatchNorm2d
    assert layers["bn1_act"] is nn.ReLU
    assert set(program.module.state_dict()) == set(Net().state_dict())
    made = compile_model(program, pipeline="prune{ratio=0.5 criterion=bn-scale},fold-bn")
    assert not [m for m in made.module.modules() if isinstance(m, nn.BatchNorm2d)]


class Sharp(nn.Module):
    """An activation with code of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh").clamp(max=3.0)


def test_code_that_lives_in_a_norm_is_written_beside_it(tmp_path: Path) -> None:
    made = compile_model(Net(Sharp()).eval(), INPUT, pipeline="prune{ratio=0.5}")
    made.save(tmp_path / "net")
    assert torch.equal(load(tmp_path / "net")(INPUT), made.module.eval()(INPUT))
    assert "Sharp" in (tmp_path / "net" / "model.py").read_text()


@pytest.mark.parametrize("net", [Net(nn.PReLU(8)), Net(momentum=None)], ids=["state below", "another momentum"])
def test_what_is_not_the_layer_stays_a_function(net: Net) -> None:
    program = trace(net.eval(), INPUT)
    assert [n.target for n in program.graph.nodes if n.target is F.batch_norm] == [F.batch_norm]


class Padded(nn.Conv2d):
    """Pads by itself, and convolves in whatever type its input has."""

    def forward(self, input: Tensor) -> Tensor:
        x = F.pad(input, (0, 1, 0, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Cast(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.to(self.weight.dtype), self.weight, self.bias)


class Twice(nn.Module):
    """Two convolutions by one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.conv.weight, self.conv.bias, padding=1)
        return F.conv2d(x, self.conv.weight, self.conv.bias, padding=2, dilation=2)


def test_functions_that_are_given_all_of_a_layer_are_layers() -> None:
    net = nn.Sequential(Padded(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Flatten(), Cast(8 * 16, 5)).eval()
    program = trace(net, INPUT)
    layers = {str(n.target): program.owner(str(n.target)) for n in program.graph.nodes if n.op == "call_module"}
    assert [type(layers[name]) for name in ("0", "3")] == [nn.Conv2d, nn.Linear]
    assert (layers["0"].padding, layers["0"].stride) == ((0, 0), (2, 2))
    torch.testing.assert_close(program.module(INPUT), net(INPUT))
    assert net[0].padding == (1, 1)
    folded = compile_model(program, pipeline="fold-bn")
    assert not [m for m in folded.module.modules() if isinstance(m, nn.BatchNorm2d)]


def test_hooks_of_what_becomes_a_layer_run_once() -> None:
    net = nn.Sequential(Padded(3, 8, 3), NormAct(8), nn.Flatten(), Cast(8 * 49, 5)).eval()

    def doubled(module: nn.Module, args: Any, output: Any) -> Any:
        return output * 2

    for place in (0, 1, 3):
        net[place].register_forward_hook(doubled)
    torch.testing.assert_close(trace(net, INPUT).module(INPUT), net(INPUT))


def test_one_weight_with_two_sets_of_numbers_is_one_layer_and_one_function() -> None:
    model = Twice().eval()
    program = trace(model, INPUT)
    assert [n.op for n in program.graph.nodes if n.op.startswith("call")] == ["call_module", "call_function"]
    torch.testing.assert_close(program.module(INPUT), model(INPUT))


class Frozen(nn.BatchNorm2d):
    """Never uses the batch's statistics."""

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)


def test_a_frozen_norm_stays_frozen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Frozen(4)).eval()
    module = trace(model, INPUT).module
    assert torch.equal(module.train()(INPUT), model.eval()(INPUT))


class Different(nn.Module):
    """Does something else in training, by what it computes or by a number."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.fc, self.way = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), way

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.way == "number":
            x = F.leaky_relu(x, 0.2 if self.training else 0.1)
        elif self.training:
            x = x * 2 if self.way == "more" else x.relu()
        elif self.way == "other":
            x = x.sigmoid()
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("way", ["number", "more", "other"])
def test_other_differences_are_told_in_one_note(way: str) -> None:
    model = nn.Sequential(Different(way)).eval()
    (note,) = trace(model, INPUT).notes
    assert note == "0 branches on `training`: its evaluation branch was captured, for train() too"


def test_a_note_names_three_modules() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(Different("more") for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([part(x) for part in self.parts]).sum(0)

    (note,) = trace(Many().eval(), INPUT).notes
    assert note.startswith("parts.0, parts.1, parts.2 and 2 more branch on `training`: their evaluation branches")
