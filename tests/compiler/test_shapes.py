"""Formulas agree with running the operation on meta tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from secateur.backends.compile import compile as compile_model
from secateur.compiler import shapes
from secateur.compiler.capture import trace
from secateur.compiler.errors import CaptureError
from secateur.compiler.ops import normalise
from secateur.compiler.program import Program, TensorSpec
from support.pruning import program_of
from support.zoo import ZOO


def check(program: Program) -> None:
    """Hold every formula against the execution of its node."""
    for node in program.graph.nodes:
        if node.op.startswith("call"):
            formula = shapes._FORMULAS.get(normalise(program, node).key)
            found = formula(normalise(program, node)) if formula else None
            if found is not None and node.args[1:] != ("values",):  # named results are tuples here
                assert _plain(found) == _plain(shapes._execute(program, node)), node.name


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (torch.Size, tuple)) else value


@pytest.mark.parametrize("name", ZOO)
def test_formulas_agree_over_the_zoo(name: str) -> None:
    check(program_of(name))


class Only(nn.Module):
    """One layer, or one function with options."""

    def __init__(self, layer: Any, **options: Any) -> None:
        super().__init__()
        if isinstance(layer, nn.Module):
            self.layer: Any = layer
        else:
            self.__dict__["layer"] = layer
        self.options = options

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, **self.options)


CONVS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (1, 5), "stride": (2, 3), "padding": (0, 2)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": "same", "dilation": (1, 2)},
    {"kernel_size": 2, "padding": "valid", "stride": 2},
    {"kernel_size": 3, "groups": 2, "padding_mode": "reflect", "padding": 1},
]
POOLS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": 2, "stride": 2, "ceil_mode": True, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 2)},
]


@pytest.mark.parametrize("size", [(9, 12), (10, 11)])
@pytest.mark.parametrize("options", CONVS)
def test_convolutions(options: dict[str, Any], size: tuple[int, int]) -> None:
    check(trace(Only(nn.Conv2d(4, 6, **options)), torch.zeros(2, 4, *size)))


@pytest.mark.parametrize("size", [(9, 12), (10, 11)])
@pytest.mark.parametrize("layer", [nn.MaxPool2d, nn.AvgPool2d, F.max_pool2d, F.avg_pool2d])
@pytest.mark.parametrize("options", POOLS)
def test_pools(layer: Any, options: dict[str, Any], size: tuple[int, int]) -> None:
    only = Only(layer(**options)) if isinstance(layer, type) else Only(layer, **options)
    check(trace(only, torch.zeros(2, 4, *size)))


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_dilated_pool(dilation: int) -> None:
    check(trace(Only(nn.MaxPool2d(3, stride=1, dilation=dilation)), torch.zeros(1, 2, 9, 9)))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.AdaptiveAvgPool2d((None, 3)), (2, 4, 9, 9)),
        (nn.AdaptiveMaxPool2d(1, return_indices=True), (2, 4, 9, 9)),
        (nn.AdaptiveAvgPool1d(2), (2, 4, 9)),
        (nn.AdaptiveAvgPool2d(1), (4, 9, 9)),
        (nn.Conv2d(4, 6, 3), (4, 9, 9)),
        (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9)),
        (nn.MaxPool3d(2), (2, 4, 5, 6, 7)),
        (nn.MaxPool2d(2, return_indices=True), (2, 4, 5, 6)),
        (nn.Linear(4, 6), (4,)),
        (nn.Linear(4, 6), (2, 3, 5, 4)),
        (nn.BatchNorm1d(4), (3, 4)),
        (nn.BatchNorm1d(4), (3, 4, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 5)),
        (nn.Flatten(), (2, 3, 4)),
        (nn.Flatten(-2), (2, 3, 4)),
    ],
)
def test_other_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    check(trace(Only(layer), torch.zeros(shape)))


class Types(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        wide = x.double() + x
        mask = (x > 0) & (x < 1)
        return wide.to(torch.float32) + mask + x.long() * 0.5 + x.permute(-1, 0, 1).sum()


def test_types_are_inferred() -> None:
    program = trace(Types(), torch.zeros(2, 3, 4))
    check(program)
    found = {n.name: shapes.value_of(n) for n in program.graph.nodes}
    assert found["add"] == TensorSpec((2, 3, 4), torch.float64)
    assert found["gt"].dtype is torch.bool


def test_a_shape_that_does_not_fit_is_told_with_its_place() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(5, 4, 1)))
    with pytest.raises(CaptureError) as caught:
        trace(net, torch.zeros(1, 3, 8, 8))
    assert "1.1 does not accept inputs of shape (1, 4, 6, 6)" in str(caught.value)
    assert caught.value.where == "1.1 (node _1_1)"
    assert "--input" in str(caught.value.hint)


def test_an_image_that_is_too_small_is_told() -> None:
    with pytest.raises(CaptureError, match="does not accept inputs of shape"):
        trace(Only(nn.Conv2d(3, 4, 5)), torch.zeros(1, 3, 4, 4))


def test_slices_and_dicts_of_nodes_become_values() -> None:
    graph = fx.Graph()
    node = graph.placeholder("x")
    shapes.set_value(node, 3)
    assert shapes.concrete({"a": [slice(node, None, node)], "b": (node, 1)}) == {"a": [slice(3, None, 3)], "b": (3, 1)}


SPREADING = [
    lambda c, x: torch.addcmul(c, c, x),
    lambda c, x: torch.addcdiv(c, x, c + 1),
    lambda c, x: c.masked_fill(x > 0, 1.0),
    lambda c, x: torch.clamp(c, max=x),
    lambda c, x: torch.lerp(c, c + 1, x),
    lambda c, x: torch.where(x > 0, c, c + 1),
]


@pytest.mark.parametrize("spread", SPREADING, ids="addcmul addcdiv masked_fill clamp lerp where".split())
def test_a_first_argument_may_be_the_smallest(spread: Any) -> None:
    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.conv = nn.Parameter(torch.rand(1, 4, 1, 1)), nn.Conv2d(3, 4, 1)
            self.head = nn.Conv2d(4, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(spread(self.small, self.conv(x)))

    program = trace(Spread().eval(), torch.zeros(2, 3, 5, 5))
    check(program)
    assert program.module(torch.zeros(2, 3, 5, 5)).shape == (2, 2, 3, 3)
    made = compile_model(program, pipeline="prune{ratio=0.5}")
    assert made.report["kept"]["params"] < 0.8
