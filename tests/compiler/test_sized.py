"""Models that compute with sizes: what else they do must not stand in the way."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.backends.compile import compile as compile_model
from secateur.compiler.capture import trace
from secateur.compiler.program import Program

NOTE = "the model computes with sizes, which are those of the example inputs"


class Same(nn.Module):
    """Pads by what the size asks for, as TensorFlow does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(8)
        self.drop = nn.Dropout2d(0.2)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down, right = (max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0) for size in (height, width))
        if down > 0 or right > 0:
            x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        x = F.dropout(self.drop(F.relu(self.bn1(self.conv1(x)))), 0.1, self.training)
        return self.fc(self.conv2(x).mean((2, 3)))


class Caching(nn.Module):
    """Keeps what it has computed for a size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bias = nn.Parameter(torch.randn(8, 8))
        self.fc = nn.Linear(8, 5)
        self.last: Tensor | None = None
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.last = x
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias[:, : x.shape[-1]]
        if x.shape[-1] > 4:
            x = x + self.cache["bias"]
        return self.fc(x.mean((2, 3)))


class Asking(nn.Module):
    """Wants to know what type tensors are of, and where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        x = self.conv(x.to(next(self.parameters()).device))
        if x.device.type != "cpu" or not x.dtype.is_floating_point or x.dtype == torch.float16 or x.shape[-1] < 2:
            raise AssertionError
        if x.shape[-1] > 4:
            x = x + torch.arange(x.shape[-1], device=x.device, dtype=x.dtype)
        x = torch.softmax(x.float(), 1, dtype=torch.float32).to(kind)
        return self.fc(x.mT.mean((2, 3)))


class Tokens(nn.Module):
    """Attention over as many tokens as there are; at half of the size, its graph would take channels for tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 32, stride=32)
        self.q, self.v, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        places = sum(range(x.shape[2] * x.shape[3])) / 6 * torch.linspace(0, 1, x.shape[2] * x.shape[3])[:, None]
        x = x.flatten(2).transpose(1, 2)
        heads = (x.shape[0], places.shape[0], -1, 4)
        q, v = (y.view(heads).transpose(1, 2) for y in (self.q(x + places), self.v(x)))
        x = F.scaled_dot_product_attention(q, q, v).transpose(1, 2)
        return self.out(x.reshape(x.shape[0], places.shape[0], -1))


def test_what_is_captured_for_a_size_is_proven_for_that_size() -> None:
    torch.manual_seed(0)
    program = trace(Tokens().eval(), torch.randn(1, 3, 64, 64))
    assert program.sized
    assert program.module(torch.randn(1, 3, 32, 32)).shape == (1, 4, 16)  # runs, and means nothing
    made = compile_model(program, pipeline="prune{ratio=0.5}")
    (stretch,) = made.report["verification"]["stretches"]
    assert [trial["shapes"] for trial in stretch["trials"]] == [[[2, 3, 64, 64]], [[3, 3, 64, 64]]]


@pytest.mark.parametrize("kind", [Same, Caching, Asking])
def test_models_that_compute_with_sizes_are_captured_and_proven(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(2, 3, 8, 8)
    program = trace(model, x)
    assert program.notes == (NOTE,)
    wanted = model(x)
    torch.testing.assert_close(program.module(x), wanted)
    made = compile_model(program, pipeline="prune{ratio=0.5}")  # raises where the proof fails
    assert made.module.eval()(x[:1]).shape == (1, 5)
    assert torch.equal(model(x), wanted)


def test_sizes_do_not_freeze_training() -> None:
    program = trace(Same().eval(), torch.randn(1, 3, 8, 8))
    module = program.module.train()
    assert not torch.equal(module(torch.ones(2, 3, 8, 8)), module(torch.ones(2, 3, 8, 8)))


def test_caches_are_as_they_were() -> None:
    model = Caching().eval()
    trace(model, torch.randn(1, 3, 8, 8))
    assert model.last is None
    assert model.cache == {}
    model(torch.randn(1, 3, 8, 8))
    last, cache = model.last, dict(model.cache)
    trace(model, torch.randn(1, 3, 8, 8))
    assert model.last is last
    assert model.cache.keys() == cache.keys()
    assert model.cache["bias"] is cache["bias"]


def test_types_and_devices_stay_those_of_the_input() -> None:
    found = trace(Asking().eval(), torch.randn(1, 3, 8, 8))
    assert "to" not in [node.target for node in found.graph.nodes if node.args[1:] == (torch.device("cpu"),)]
    assert _calls(found, torch.arange)["dtype"].args[1] == "dtype"
    assert _calls(found, torch.arange)["device"].args[1] == "device"
    half = found.module.to(torch.bfloat16)
    assert half(torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def _calls(program: Program, target: object) -> dict[str, torch.fx.Node]:
    (node,) = (node for node in program.graph.nodes if node.target is target)
    return dict(node.kwargs)
