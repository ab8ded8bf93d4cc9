"""Folding batch norms: every algebra of the file's heading, and every refusal."""

import pytest
import torch
from torch import nn

from secateur.compiler.capture import trace
from secateur.passes.fold_bn import NOTE, FoldBN
from support.exact import lively, missed, run_exact

SHAPE = (1, 6, 8, 8)


class Sequence(nn.Module):
    """Its layers one after the other, under short names."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        for number, layer in enumerate(layers):
            self.add_module(f"l{number}", layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = layer(x)
        return x


FORWARD = {
    "conv": (nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)),
    "conv with bias": (nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)),
    "grouped transposed": (nn.ConvTranspose2d(6, 4, 3, groups=2), nn.BatchNorm2d(4)),
    "no affine": (nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8, affine=False)),
    "linear": (nn.Flatten(), nn.Linear(384, 5), nn.BatchNorm1d(5)),
    "two norms": (nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)),
    "norm first": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3)),
    "norm first, grouped": (nn.BatchNorm2d(6), nn.Conv2d(6, 9, 3, groups=3, bias=False)),
    "norm first, reflecting": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect")),
    "norm first, 1x1 same": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1, padding="same")),
    "norm before linear": (nn.Flatten(), nn.BatchNorm1d(384), nn.Linear(384, 5)),
}


@pytest.mark.parametrize("name", FORWARD)
def test_folds_exactly(name: str) -> None:
    result = run_exact(Sequence(*FORWARD[name]), SHAPE, FoldBN())
    assert missed(result) == {}
    kinds = {type(layer) for layer in result.program.module.modules()}
    assert not kinds & {nn.BatchNorm1d, nn.BatchNorm2d}
    assert NOTE in result.program.notes


def test_a_scale_without_shift_goes_into_a_padded_layer_and_a_transposed_one() -> None:
    for layer in (nn.Conv2d(6, 4, 3, padding=1), nn.ConvTranspose2d(6, 4, 3, padding=1)):
        module = lively(Sequence(nn.BatchNorm2d(6), layer))
        norm = module.get_submodule("l0")
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        norm.bias.data.zero_()
        norm.running_mean.zero_()
        result = FoldBN().run(trace(module, torch.zeros(SHAPE)))
        assert missed(result) == {}
        x = torch.randn(2, *SHAPE[1:])
        torch.testing.assert_close(result.program.module.eval()(x), module(x), rtol=1e-4, atol=1e-5)


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class Twice(TwoReaders):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(self.conv(x)))


class NormTwice(TwoReaders):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(self.bn(x)))


class Tied(TwoReaders):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(6, 6, 1)
        self.other.weight = self.conv.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)) + self.other(x)


class SharedConsumers(nn.Module):
    """One norm that two convolutions read, as in pre-activation networks: both take it in."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.a, self.b = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(x)
        return self.a(y).mean((2, 3)) + self.b(y).mean((2, 3))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (TwoReaders(), "conv also feeds add"),
        (Twice(), "called more than once"),
        (NormTwice(), "it is called more than once"),
        (Tied(), "shares its weight"),
        (Sequence(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)), "l1, which pads with zeros"),
        (Sequence(nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 4, 3)), "l1, which pads with zeros"),
        (Sequence(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, track_running_stats=False)), "no running statistics"),
        (Sequence(nn.Flatten(2), nn.Linear(64, 6), nn.BatchNorm1d(6)), "along another axis"),
        (Sequence(nn.ReLU(), nn.BatchNorm2d(6), nn.ReLU()), "it follows 'ReLU' (l0), which takes in no scale"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_refuses_with_a_reason(module: nn.Module, reason: str) -> None:
    result = run_exact(module, SHAPE, FoldBN())
    assert [text for text in missed(result).values() if reason in text], missed(result)


def test_all_readers_of_a_norm_take_it_in() -> None:
    result = run_exact(SharedConsumers(), SHAPE, FoldBN())
    assert [r.reason for r in result.remarks] == ["folded into a, b"]


def test_the_program_given_stays_as_it_is() -> None:
    module = lively(Sequence(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    FoldBN().run(trace(module, torch.zeros(SHAPE)))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    conv = module.get_submodule("l0")
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is None
