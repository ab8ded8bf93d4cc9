"""Patches: what every output position reads, so that the layer is a matrix product."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.compiler.capture import trace
from secateur.compiler.ops import Call, normalise
from secateur.compiler.patches import channel_axis, draw, gram, groups_of, patches

CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(4, 6, 3), (2, 4, 7, 6)),
    "pointwise, strided": (nn.Conv2d(4, 6, 1, stride=2), (2, 4, 7, 6)),
    "padded, strided, dilated": (nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 1), (2, 3)), (2, 4, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 5, 5)),
    "same": (nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2)), (2, 4, 6, 7)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 6, 7)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"), (2, 4, 6, 7)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 6, 7)),
    "replicate": (nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="replicate"), (2, 4, 6, 7)),
    "one axis": (nn.Conv1d(4, 6, 5, stride=2, padding=2), (2, 4, 11)),
    "three axes": (nn.Conv3d(4, 6, (3, 1, 2), padding=(1, 0, 1)), (2, 4, 3, 4, 5)),
    "linear": (nn.Linear(4, 6), (3, 4)),
    "linear on tokens": (nn.Linear(4, 6), (3, 5, 4)),
}


def product(call: Call, weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """What the matrix product gives at drawn positions, and the layer."""
    axis = channel_axis(call, y)
    at = draw(y.shape, axis, limit, torch.Generator().manual_seed(0))
    read = patches(call, x, at)
    found = torch.einsum("sgj,goj->sgo", read, weight.reshape(groups_of(call), -1, read.shape[2])).flatten(1)
    return found + bias, at.take(y, axis)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("limit", [6, 10_000])
def test_the_layer_is_a_product_with_its_patches(name: str, limit: int) -> None:
    module, shape = CASES[name]
    layer: Any = module.double()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    program = trace(nn.Sequential(layer), x)
    call = next(normalise(program, node) for node in program.graph.nodes if node.op == "call_module")
    with torch.no_grad():
        found, wanted = product(call, layer.weight, layer.bias, x, layer(x), limit)
    torch.testing.assert_close(found, wanted)
    assert len(found) == min(limit, layer(x).numel() // len(layer.weight))


def test_functions_too() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, None, 2, padding=1)

    x = torch.randn(2, 4, 8, 8)
    program = trace(Net(), x)
    call = next(normalise(program, node) for node in program.graph.nodes if node.op == "call_function")
    weight = program.attribute("weight").detach()
    y = F.conv2d(x, weight, None, 2, padding=1)
    call.params["weight"] = weight
    found, wanted = product(call, weight, torch.zeros(6), x, y, 10)
    torch.testing.assert_close(found, wanted)


def test_every_image_is_looked_at_as_often_and_no_position_twice() -> None:
    at = draw((3, 8, 5, 5), 1, 30, torch.Generator().manual_seed(0))
    image, row, column = at.index
    assert torch.bincount(image).tolist() == [10, 10, 10]
    assert len(set(zip(image.tolist(), row.tolist(), column.tolist(), strict=True))) == 30
    again = draw((3, 8, 5, 5), 1, 30, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(at.index, again.index, strict=True))


@pytest.mark.parametrize(("groups", "columns"), [(1, 5), (1, 257), (2, 300), (1, 1000)])
@pytest.mark.parametrize("apart", [False, True])
def test_products_of_all_pairs_of_columns(groups: int, columns: int, apart: bool) -> None:
    samples = torch.randn(groups, 40, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    samples = samples.transpose(0, 1).contiguous().transpose(0, 1) if apart else samples
    found = gram(samples)
    assert torch.allclose(found, torch.einsum("gsi,gsj->gij", samples, samples), rtol=1e-12, atol=1e-12)
