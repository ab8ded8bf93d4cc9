"""What is known of channels whatever the input is: rule by rule, and on random networks against what they compute."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.constants import Constants, find_constants
from secateur.compiler.program import Program
from support.killing import kill, killed_case, wide_examples
from support.random_net import RandomNet, Step, steps
from support.zoo import ZOO

NAN = float("nan")
KNOWN = [2.0, 0.0, NAN, -1.0]
"""Channels of the stem: three rows of zeros with these biases."""


def stem() -> nn.Conv2d:
    layer = nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        layer.weight[[0, 1, 3]] = 0.0
        layer.get_parameter("bias").copy_(torch.tensor([2.0, 0.0, 5.0, -1.0]))
    return layer


class Behind(nn.Module):
    """Some operation behind the stem."""

    def __init__(self, forward: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.stem = stem()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.behind = forward

    def forward(self, x: Tensor) -> Any:
        return self.behind(self, self.stem(x))


def found(model: nn.Module, *shape: int) -> tuple[Program, Constants]:
    program = trace(model.double().eval(), torch.zeros(shape or (2, 3, 8, 8), dtype=torch.float64))
    return program, find_constants(program, analyze(program))


def last(model: nn.Module, axis: int = 1) -> list[float]:
    """The constants along an axis of what the model returns."""
    program, constants = found(model)
    (output,) = (n for n in program.graph.nodes if n.op == "output")
    (node,) = output.all_input_nodes
    return constants.channels(node, axis).tolist()


def behind(forward: Callable[..., Any], axis: int = 1, **layers: Any) -> list[float]:
    return last(Behind(forward, **layers), axis)


def same(actual: list[float], expected: list[float]) -> bool:
    return len(actual) == len(expected) and np.allclose(actual, expected, rtol=1e-12, atol=0, equal_nan=True)


def test_a_row_of_zeros_is_its_bias() -> None:
    assert same(behind(lambda self, x: x), KNOWN)


def add_to_pieces(x: Tensor) -> Tensor:
    pieces = x.chunk(2, 1)
    x.add_(1)
    return pieces[1] + x[:, :2]


def attended(x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """Tokens weighed by tokens, back in the order of images."""
    return product(x.flatten(2).transpose(1, 2)).transpose(1, 2)


CASES: dict[str, tuple[Callable[..., Any], list[float]]] = {
    "relu": (lambda self, x: F.relu(x), [2.0, 0.0, NAN, 0.0]),
    "method": (lambda self, x: x.clamp(-0.5, 1.5), [1.5, 0.0, NAN, -0.5]),
    "literal": (lambda self, x: 3.0 - x * 2, [-1.0, 3.0, NAN, 5.0]),
    "sum": (lambda self, x: x + x.flip(1), [1.0, NAN, NAN, 1.0]),
    "square": (lambda self, x: x**2, [4.0, 0.0, NAN, 1.0]),
    "zero times unknown": (lambda self, x: x * x.flip(1), [-2.0, 0.0, 0.0, -2.0]),
    "zero over unknown": (lambda self, x: x / x.flip(1), [-2.0, NAN, NAN, -0.5]),
    "a size": (lambda self, x: x * x.shape[0], [NAN] * 4),
    "a jump": (lambda self, x: torch.floor(x), [NAN] * 4),
    "comparison": (lambda self, x: torch.where(x > 0, x, x), [NAN] * 4),
    "dropout": (lambda self, x: F.dropout(x, 0.5, self.training), KNOWN),
    "dropout at all times": (lambda self, x: F.dropout(x, 0.5), [NAN] * 4),
    "max pool": (lambda self, x: F.max_pool2d(x, 3, 2, 1), KNOWN),
    "dilated pool": (lambda self, x: F.max_pool2d(x, 3, 2, 1, 2), [NAN] * 4),
    "average": (lambda self, x: F.avg_pool2d(x, 2), KNOWN),
    "padded average": (lambda self, x: F.avg_pool2d(x, 3, 2, 1), [NAN, 0.0, NAN, NAN]),
    "average of what is there": (lambda self, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), KNOWN),
    "adaptive pool": (lambda self, x: F.adaptive_avg_pool2d(x, 3), KNOWN),
    "interpolate": (lambda self, x: F.interpolate(x, scale_factor=2, mode="bilinear"), KNOWN),
    "mean": (lambda self, x: x.mean((2, 3)), KNOWN),
    "sum over space": (lambda self, x: x.sum((2, 3), keepdim=True), [NAN, 0.0, NAN, NAN]),
    "mean over channels": (lambda self, x: x.mean(1, keepdim=True), [NAN]),
    "cat": (lambda self, x: torch.cat([x, -x], 1), [*KNOWN, -2.0, 0.0, NAN, 1.0]),
    "cat along space": (lambda self, x: torch.cat([x, F.relu(x)], 2), [2.0, 0.0, NAN, NAN]),
    "stack": (lambda self, x: torch.stack([x, F.relu(x)], 2).sum(2), [NAN, 0.0, NAN, NAN]),
    "stack and merge": (lambda self, x: torch.stack([x, x], 2).flatten(1, 2), [2, 2, 0, 0, NAN, NAN, -1, -1]),
    "chunks": (lambda self, x: x.chunk(2, 1)[1], [NAN, -1.0]),
    "slice": (lambda self, x: x[:, 1:, ::2], KNOWN[1:]),
    "shuffle": (lambda self, x: x.view(2, 2, 2, 8, 8).transpose(1, 2).flatten(1, 2), [2.0, NAN, 0.0, -1.0]),
    "roll": (lambda self, x: torch.roll(x, 1, 1), [-1.0, 2.0, 0.0, NAN]),
    "repeat": (lambda self, x: x.repeat(1, 2, 1, 1), KNOWN * 2),
    "tokens": (lambda self, x: x.flatten(2).transpose(1, 2).transpose(1, 2), KNOWN),
    "flatten": (lambda self, x: x[:, :, :1, :2].flatten(1), [2.0, 2.0, 0.0, 0.0, NAN, NAN, -1.0, -1.0]),
    "pixel shuffle": (lambda self, x: F.pixel_shuffle(torch.cat([x, x * 0], 1), 2), [NAN, 0.0]),
    "pixel unshuffle": (lambda self, x: F.pixel_unshuffle(x[:, :1], 2), [2.0] * 4),
    "padded channels": (lambda self, x: F.pad(x, (0, 0, 0, 0, 1, 1), value=7.0), [7.0, *KNOWN, 7.0]),
    "padded space": (lambda self, x: F.pad(x, (1, 1, 1, 1), value=2.0), [2.0, NAN, NAN, NAN]),
    "reflected space": (lambda self, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), KNOWN),
    "product that keeps channels": (lambda self, x: torch.einsum("bchw,bchw->bc", x, x.flip(1)), [NAN, 0.0, 0.0, NAN]),
    "weighed tokens": (
        lambda self, x: attended(x, lambda t: (t @ t.transpose(1, 2)).softmax(-1) @ t),
        [NAN, 0.0, NAN, NAN],
    ),
    "attention": (
        lambda self, x: attended(x, lambda t: F.scaled_dot_product_attention(t, t, t, scale=0.5)),
        [NAN, 0.0, NAN, NAN],
    ),
    "unit length": (lambda self, x: F.normalize(x), [NAN, 0.0, NAN, NAN]),
    "product with a vector": (lambda self, x: x.flatten(2) @ torch.ones(64, dtype=x.dtype), [NAN] * 4),
    "unknown operation": (lambda self, x: torch.cumsum(x, 2), [NAN] * 4),
    "in place": (lambda self, x: [F.relu_(x), x + 0][1], [2.0, 0.0, NAN, 0.0]),
    "in place through a view": (lambda self, x: [x[:, :2].mul_(2), x + 0][1], [NAN] * 4),
    "a piece of what is changed in place": (lambda self, x: add_to_pieces(x), [NAN] * 2),
}


@pytest.mark.parametrize("name", CASES)
def test_operations(name: str) -> None:
    forward, expected = CASES[name]
    actual = behind(forward)
    assert same(actual, expected), actual


def test_a_pool_may_tell_positions_too() -> None:
    assert same(behind(lambda self, x: self.pool(x)[0], pool=nn.MaxPool2d(2, return_indices=True)), KNOWN)


def batch_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4, eps=0.0)
    with torch.no_grad():
        norm.weight[:] = torch.tensor([3.0, 1.0, 0.0, 0.0])
        norm.bias[:] = torch.tensor([1.0, 2.0, 3.0, 4.0])
        norm.running_mean = torch.tensor([1.0, -1.0, 0.0, 0.0])
        norm.running_var = torch.tensor([4.0, 1.0, 1.0, 1.0])
    return norm


def test_batch_norm_uses_running_statistics() -> None:
    assert same(behind(lambda self, x: self.norm(x), norm=batch_norm()), [2.5, 3.0, 3.0, 4.0])


def test_batch_norm_without_them_knows_what_it_scales_by_zero() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    norm.load_state_dict({k: v for k, v in batch_norm().state_dict().items() if "running" not in k and "num" not in k})
    assert same(behind(lambda self, x: self.norm(x), norm=norm), [NAN, NAN, 3.0, 4.0])


def reading(layer: nn.Module, fill: float = 1.0, **unread: Any) -> nn.Module:
    """A layer whose weight reads everything but column 2, the unknown channel."""
    with torch.no_grad():
        layer.get_parameter("weight").fill_(fill)
        columns = unread.get("axis", 1)
        layer.get_parameter("weight").select(columns, 2).zero_()
        layer.get_parameter("bias").fill_(0.5)
    return layer


def test_layers_compute_with_constants() -> None:
    assert same(behind(lambda self, x: self.a(x), a=reading(nn.Conv2d(4, 2, 3))), [0.5 + 9.0] * 2)
    assert same(behind(lambda self, x: self.a(x.mean((2, 3))), a=reading(nn.Linear(4, 2))), [1.5] * 2)
    mirrored = nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect")
    assert same(behind(lambda self, x: self.a(x), a=reading(mirrored)), [9.5] * 2)


def test_borders_are_not_constant() -> None:
    for layer in (nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 2, 3, padding="same"), nn.Conv2d(4, 2, 1, padding=1)):
        assert same(behind(lambda self, x: self.a(x), a=reading(layer)), [NAN] * 2)
        assert same(behind(lambda self, x: self.a(x * 0), a=reading(layer)), [0.5] * 2)
    transposed = reading(nn.ConvTranspose2d(4, 2, 3), axis=0)
    assert same(behind(lambda self, x: self.a(x), a=transposed), [NAN] * 2)
    assert same(behind(lambda self, x: self.a(x * 0), a=transposed), [0.5] * 2)


def test_groups_read_their_own_inputs() -> None:
    grouped = nn.Conv2d(4, 4, 1, groups=2)
    with torch.no_grad():
        grouped.weight.copy_(torch.arange(1.0, 9.0).reshape(4, 2, 1, 1))
        grouped.get_parameter("bias").zero_()
    assert same(behind(lambda self, x: self.a(x), a=grouped), [2.0, 6.0, NAN, NAN])


def test_what_a_layer_reads_is_recorded() -> None:
    program, constants = found(Behind(lambda self, x: self.a(F.relu(x)), a=nn.Conv2d(4, 2, 3, padding=1)))
    (node,) = (n for n in program.graph.nodes if n.target == "a")
    record = constants.readings[node]
    assert same(record.channels.tolist(), [2.0, 0.0, NAN, 0.0])
    assert record.borders
    assert record.kernel is not None
    assert record.kernel.shape == (1, 2, 4, 9)


def test_a_buffer_that_the_model_writes_to_is_no_constant() -> None:
    class Counting(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.stem = stem()
            self.register_buffer("seen", torch.ones(1, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1)
            return self.stem(x) * self.seen

    assert same(last(Counting()), [NAN, 0.0, NAN, NAN])


# Against what is computed ---------------------------------------------------------------------------------------------


class Comparing(fx.Interpreter):
    """Runs a program, and compares every tensor with what is said to be known of it."""

    def __init__(self, program: Program, constants: Constants) -> None:
        super().__init__(program.module.eval())
        self.constants = {node.name: value for node, value in constants.values.items()}
        self.known = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self._compare(n.name, result, self.constants[n.name])
        return result

    def _compare(self, name: str, result: Any, value: Any) -> None:
        if isinstance(value, tuple):
            for part, known in zip(result, value, strict=True):
                self._compare(name, part, known)
        elif value is not None:
            claimed = torch.from_numpy(value).expand(result.shape)
            says = ~claimed.isnan()
            self.known += int(says.sum())
            torch.testing.assert_close(
                result[says], claimed[says], rtol=1e-10, atol=1e-10, msg=lambda m: f"{name}: {m}"
            )


def check(program: Program, inputs: tuple[Tensor, ...]) -> int:
    comparing = Comparing(program, find_constants(program, analyze(program)))
    with torch.no_grad():
        comparing.run(*(x.clone() for x in inputs))
    return comparing.known


@pytest.mark.parametrize("name", ZOO)
def test_what_is_known_is_what_is_computed(name: str) -> None:
    program = trace(killed_case(name, 0.4, columns=True), wide_examples(name))
    check(program, wide_examples(name))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(steps, st.integers(0, 9))
def test_what_is_known_is_what_any_network_computes(plan: list[Step], seed: int) -> None:
    module = kill(RandomNet(plan), 0.4, seed, columns=True, spare="head")
    program = trace(module, torch.zeros(2, 3, 6, 6, dtype=torch.float64))
    assert check(program, (torch.randn(2, 3, 6, 6, dtype=torch.float64),)) > 0 or not bool(
        (module.get_parameter("stem.weight").flatten(1) == 0).all(1).any()
    )
