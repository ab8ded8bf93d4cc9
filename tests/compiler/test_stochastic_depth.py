"""Copies of ``drop_path``: captured for both modes where they do what the name says, left alone where they do not."""

import pytest
import torch
from torch import Tensor, nn

from secateur.backends.compile import compile as compile_model
from secateur.compiler import functional
from secateur.compiler.capture import trace

INPUT = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def drop_path(x: Tensor, drop_prob: float = 0.0, training: bool = False, scale_by_keep: bool = True) -> Tensor:
    if drop_prob == 0.0 or not training:
        return x
    keep = 1 - drop_prob
    noise = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    if scale_by_keep:
        noise.div_(keep)
    return x * noise


class DropPath(nn.Module):
    def __init__(self, rate: float, scale: bool = True) -> None:
        super().__init__()
        self.rate, self.scale = rate, scale

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, training=self.training, drop_prob=self.rate, scale_by_keep=self.scale)


class Block(nn.Module):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2, self.drop = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), drop
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.fc((x + self.drop(self.norm(self.conv2(x)))).mean((2, 3)))


def test_a_copy_of_it_is_one_graph_for_both_modes() -> None:
    model = Block(DropPath(0.5)).eval()
    program = trace(model, INPUT)
    assert program.notes == ()
    assert functional.stochastic_depth in [node.target for node in program.graph.nodes]
    torch.manual_seed(1)
    wanted = model.train()(INPUT)
    torch.manual_seed(1)
    torch.testing.assert_close(program.module.train()(INPUT), wanted)
    made = compile_model(program, pipeline="prune{ratio=0.5}").module.train()
    assert not torch.equal(made(INPUT), made(INPUT))


def drop_connect(inputs: Tensor, p: float, training: bool) -> Tensor:
    assert 0 <= p <= 1
    if not training:
        return inputs
    keep_prob = 1 - p
    random_tensor = keep_prob + torch.rand([inputs.shape[0], 1, 1, 1], dtype=inputs.dtype, device=inputs.device)
    return inputs / keep_prob * torch.floor(random_tensor)


class DropConnect(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return drop_connect(x, p=0.5, training=self.training)


def test_it_has_another_name_in_older_networks() -> None:
    program = trace(Block(DropConnect()).eval(), INPUT)
    assert program.notes == ()
    assert functional.stochastic_depth in [node.target for node in program.graph.nodes]


def test_without_a_rate_nothing_is_dropped() -> None:
    program = trace(Block(DropPath(0.0)).eval(), INPUT)
    assert program.notes == ()
    assert functional.stochastic_depth not in [node.target for node in program.graph.nodes]


def test_without_scaling_it_is_something_else() -> None:
    (note,) = trace(Block(DropPath(0.5, scale=False)).eval(), INPUT).notes
    assert note.startswith("drop branches on `training`")


def test_the_function_is_back_in_its_place() -> None:
    before = drop_path
    trace(Block(DropPath(0.5)).eval(), INPUT)
    assert DropPath.forward.__globals__["drop_path"] is before


@pytest.mark.parametrize("way", ["halves", "all", "none", "raises"])
def test_another_function_of_the_name_is_left_alone(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    def other(x: Tensor, drop_prob: float = 0.0, training: bool = False, scale_by_keep: bool = True) -> Tensor:
        if not training or way == "none":
            return x
        if way == "raises":
            raise TypeError
        return x * 0.5 if way == "halves" else x * 0

    monkeypatch.setitem(DropPath.forward.__globals__, "drop_path", other)
    program = trace(Block(DropPath(0.5)).eval(), INPUT)
    assert functional.stochastic_depth not in [node.target for node in program.graph.nodes]
