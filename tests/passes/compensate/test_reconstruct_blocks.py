"""Refitting the layers of a block together."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.errors import OptionError
from secateur.passes.base import RemarkKind
from secateur.passes.compensate.reconstruct import Reconstruct
from secateur.passes.compensate.reconstruct_blocks import ReconstructBlocks
from secateur.passes.pipeline import Step
from support.compensation import error, images, mended, missed

DATA = [images(16, 3, 8, 8, seed=s) for s in range(6)]


class Branch(nn.Module):
    """A residual block with a shortcut that has a layer of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn_a = nn.BatchNorm2d(outputs)
        self.b = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.short = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.bn_a(self.a(x)))) + self.short(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 1), Branch(8, 8), Branch(8, 12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.two(self.one(torch.relu(self.stem(x)))).mean((2, 3)))


def steps(module: nn.Module, prune: dict[str, Any], *, first: bool = True, **options: Any) -> tuple[Step, Step]:
    before = [Reconstruct(data=DATA)] if first else []
    result = mended(module, DATA, prune, *before, ReconstructBlocks(data=DATA, **options))
    return result.steps[-2], result.steps[-1]


def said(step: Step) -> dict[str, str]:
    return {r.node: r.reason for r in step.remarks if r.kind is RemarkKind.APPLIED}


def test_blocks_are_what_stands_between_two_trunks() -> None:
    _, blocks = steps(Net(), {"layers": {"one.a": 0.5, "two.a": 0.5}}, iterations=2)
    assert list(said(blocks)) == ["one.b", "two.a, two.b, two.short", "fc"]
    assert blocks.stats["blocks"] == 3
    _, trunk = steps(Net(), {"ratio": 0.25}, iterations=2)
    assert list(said(trunk)) == ["one.a, one.b", "two.a, two.b, two.short", "fc"]


def test_a_plain_chain_goes_two_by_two() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    module = nn.Sequential(*layers, nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    _, blocks = steps(module, {"ratio": 0.25}, iterations=2)
    assert list(said(blocks)) == ["2, 5", "8, 14"]


def test_together_is_better_than_one_by_one() -> None:
    """On images that were not seen, in the block and at the output."""
    one_by_one, together = steps(Net(), {"layers": {"one.a": 0.5, "two.a": 0.5}})
    x = images(64, 3, 8, 8, seed=99)
    stats = together.stats
    assert stats["block_error_after"] < 0.9 * stats["block_error_before"]
    assert stats["output_error_after"] < stats["output_error_before"] == one_by_one.stats["output_error_after"]
    original = mended(Net(), DATA, {"ratio": 0.0}).program
    assert error(together.program, original, x) < error(one_by_one.program, original, x)


def test_fitting_leaves_no_gradients_behind() -> None:
    module = Net()
    _, together = steps(module, {"ratio": 0.25}, iterations=2)
    held = [*module.parameters(), *together.program.module.parameters()]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in held)


def test_without_refitting_first_it_finds_most_by_itself() -> None:
    pruned, together = steps(Net(), {"layers": {"one.a": 0.5}}, first=False)
    assert together.stats["output_error_after"] < 0.5 * together.stats["output_error_before"]
    assert pruned.program.module.state_dict().keys() == together.program.module.state_dict().keys()


def test_what_does_not_help_on_held_out_data_is_taken_back() -> None:
    """Inputs that are all the same, but for the ones held out: what is learnt from them is of no use there."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten())
    data = [torch.zeros(2, 3, 4, 4), images(2, 3, 4, 4)]
    pruned, together = mended(module, data, {"layers": {"0": 0.125}}, ReconstructBlocks(data=data, iterations=5)).steps
    before, after = (together.stats[f"block_error_{when}"] for when in ("before", "after"))
    assert after <= before
    if after == before:
        old, new = (step.program.module.state_dict() for step in (pruned, together))
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_wide_layers_are_scaled_by_their_variances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.passes.compensate.reconstruct_blocks.WIDEST", 8)
    _, together = steps(Net(), {"layers": {"one.a": 0.5, "two.a": 0.5}})
    assert together.stats["block_error_after"] < together.stats["block_error_before"]


def test_the_same_data_give_the_same_weights() -> None:
    first, second = (steps(Net(), {"ratio": 0.25}, iterations=3)[1].program.module.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_infinities_are_refused() -> None:
    data = [torch.full((2, 3, 8, 8), torch.inf)] * 2
    step = mended(Net(), data, {"layers": {"one.a": 0.5}}, ReconstructBlocks(data=data)).steps[-1]
    assert missed(step)["one.b"] == "not refitted: there are infinities in what enters or is to leave"
    assert step.stats["blocks"] == 0


def test_batches_beyond_the_samples_are_not_fitted() -> None:
    """Six batches of 16 x 8 x 8 positions, of which the last is held out: two are enough for 2,000."""

    def weights(middle: Tensor, samples: int) -> dict[str, Tensor]:
        data = [*DATA[:2], middle, *DATA[3:]]
        torch.manual_seed(0)
        made = mended(
            nn.Sequential(Branch(3, 8), Branch(8, 8), nn.Flatten()),
            data,
            {"layers": {"0.a": 0.5}},
            ReconstructBlocks(data=data, samples=samples, iterations=3),
        )
        return made.program.module.state_dict()

    def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
        return all(torch.equal(one[name], two[name]) for name in one)

    other = images(16, 3, 8, 8, seed=50)
    assert same(weights(DATA[2], 2000), weights(other, 2000))
    assert not same(weights(DATA[2], 2000), weights(DATA[2], 3000))
    assert not same(weights(DATA[2], 3000), weights(other, 3000))


def test_nothing_to_do_and_options() -> None:
    _, step = steps(Net(), {"ratio": 0.0}, first=False)
    assert not step.changed
    assert step.remarks[-1].reason == "nothing was refitted: no block reads pruned channels"
    with pytest.raises(OptionError, match="iterations=0 is out of range"):
        ReconstructBlocks(iterations=0)
    with pytest.raises(OptionError, match="samples=0 is out of range"):
        ReconstructBlocks(samples=0)
