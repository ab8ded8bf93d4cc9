"""Refitting layers behind pruned channels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.backends import inputs
from secateur.backends.calibration import open_for
from secateur.backends.verify import verify
from secateur.compiler.capture import trace
from secateur.compiler.errors import OptionError, SourceError
from secateur.passes.base import RemarkKind
from secateur.passes.compensate.reconstruct import Reconstruct
from secateur.passes.pipeline import PassPipeline, Step
from secateur.passes.prune.prune import Prune
from support.compensation import error, images, mended, missed

DATA = [images(24, 3, 8, 8, seed=s) for s in range(2)]


def block(i: int, o: int, **options: Any) -> list[nn.Module]:
    return [nn.Conv2d(i, o, 3, padding=1, **options), nn.BatchNorm2d(o), nn.ReLU()]


class Trunk(nn.Module):
    """A residual branch whose inner channels go."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(*block(3, 8, bias=False))
        self.a = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn_a = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn_b = nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.d = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.bn_b(self.b(torch.relu(self.bn_a(self.a(x))))))
        x = torch.relu(self.d(torch.relu(self.c(x))) + x)
        return self.fc(x.mean((2, 3)))


def steps(module: nn.Module, prune: dict[str, Any], data: list[Tensor] = DATA, **options: Any) -> tuple[Step, Step]:
    first, second = mended(module, data, prune, Reconstruct(data=data, **options)).steps
    return first, second


def planted(last: nn.Module, between: list[nn.Module]) -> nn.Sequential:
    """Channels 4 to 7 are copies of 0 to 3, and weaker: nothing is lost without them, once the reader knows."""
    torch.manual_seed(1)
    first = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        first.weight[4:] = 0.3 * first.weight[:4]
        assert first.bias is not None
        first.bias[4:] = 0.3 * first.bias[:4]
    return nn.Sequential(first, *between, last)


REDUNDANT = {
    "conv": planted(nn.Conv2d(8, 5, 3, padding=1), [nn.ReLU()]),
    "conv without bias": planted(nn.Conv2d(8, 5, 3, stride=2, bias=False), [nn.ReLU()]),
    "linear": planted(nn.Linear(8, 5), [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]),
    "linear behind a flattened map": planted(nn.Linear(72, 5), [nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]),
}


@pytest.mark.parametrize("name", REDUNDANT)
def test_what_is_redundant_is_made_up_for(name: str) -> None:
    module = REDUNDANT[name]
    data = [images(200, 3, 8, 8)] if "flattened" in name else DATA
    pruned, repaired = steps(module, {"layers": {"0": 0.5}}, data)
    dense, x = trace(module, data[0]), images(16, 3, 8, 8, seed=9)
    before, after = error(pruned.program, dense, x), error(repaired.program, dense, x)
    assert before > 0.03
    assert after < 5e-3 * before, "as far as the smallest ridge lets it"


def test_grouped_and_depthwise_readers() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        *block(3, 16), *block(16, 16, groups=4), *block(16, 16, groups=16), nn.Conv2d(16, 4, 1), nn.Flatten()
    )
    pruned, repaired = steps(module, {"ratio": 0.25})
    dense, x = trace(module, x := images(16, 3, 8, 8, seed=9)), x
    assert error(repaired.program, dense, x) < 0.7 * error(pruned.program, dense, x)
    assert repaired.stats["layers"] == 3


def test_every_layer_that_pruning_reaches_is_refitted_and_says_what_it_gained() -> None:
    pruned, repaired = steps(Trunk(), {"layers": {"a": 0.5}})
    said = {r.node: r.reason for r in repaired.remarks if r.kind is RemarkKind.APPLIED}
    assert list(said) == ["b", "c", "d", "fc"]
    assert said["b"].startswith("refitted: relative error of what it gives 0.")
    stats = repaired.stats
    assert stats["layers"] == 4
    assert stats["layer_error_after"] < stats["layer_error_before"]
    assert stats["output_error_after"] < 0.5 * stats["output_error_before"]
    assert stats["agreement_after"] >= stats["agreement_before"]
    assert repaired.program.module.state_dict().keys() == pruned.program.module.state_dict().keys()


def test_the_least_squares_solution_of_one_layer() -> None:
    """Against torch.linalg.lstsq on what the pruned network reads, on all positions."""
    torch.manual_seed(2)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten()).double()
    data = [images(4, 3, 6, 6).double()]
    pruned, repaired = steps(module, {"layers": {"0": 0.5}}, data)
    with torch.no_grad():
        read = pruned.program.module.get_submodule("0")(data[0]).relu()
        wanted = module[:3](data[0])
    x = torch.cat([read.movedim(1, -1).flatten(0, -2), torch.ones(len(read) * 16, 1)], 1)
    solution = torch.linalg.lstsq(x, wanted.movedim(1, -1).flatten(0, -2)).solution
    layer: Any = repaired.program.module.get_submodule("2")
    torch.testing.assert_close(layer.weight[:, :, 0, 0], solution[:-1].T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(layer.bias, solution[-1], rtol=1e-3, atol=1e-3)


class Sums(nn.Module):
    """Two residual branches, the second of which can make up for the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        self.c, self.d = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(torch.relu(self.a(x)))
        return (x + self.d(torch.relu(self.c(x)))).flatten(1)


def test_the_sum_behind_a_branch_is_met_better_than_by_its_layers_alone() -> None:
    prune = {"layers": {"a": 0.5, "c": 0.5}}
    by_sum, by_layer = (steps(Sums(), prune, target=t)[1].stats for t in ("sum", "layer"))
    assert by_sum["output_error_after"] < by_layer["output_error_after"] < by_layer["output_error_before"]


def test_values_below_zero_are_free_in_front_of_a_relu() -> None:
    def layer_error(rounds: int) -> float:
        module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten())
        torch.manual_seed(3)
        for layer in (module[0], module[2]):
            layer.reset_parameters()  # pyright: ignore
        return steps(module, {"layers": {"0": 0.5}}, rounds=rounds)[1].stats["layer_error_after"]

    errors = [layer_error(rounds) for rounds in (0, 1, 4)]
    assert errors[0] > errors[1] > errors[2]


def test_the_norm_takes_the_bias() -> None:
    pruned, repaired = steps(Trunk(), {"layers": {"a": 0.5}})
    old, new = (step.program.module.state_dict() for step in (pruned, repaired))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {
        "b.weight",
        "bn_b.running_mean",
        *(f"{x}.{y}" for x in ("c", "d", "fc") for y in ("weight", "bias")),
    }


def test_few_samples_of_a_wide_layer() -> None:
    """Fewer samples than inputs: the equations by samples are solved, and help on other images too."""
    module = planted(nn.Conv2d(8, 5, 3, padding=1), [nn.ReLU()])
    pruned, repaired = steps(module, {"layers": {"0": 0.5}}, samples=20)
    dense, x = trace(module, DATA[0]), images(16, 3, 8, 8, seed=9)
    assert error(repaired.program, dense, x) < 0.7 * error(pruned.program, dense, x)


def test_the_same_data_give_the_same_weights() -> None:
    first, second = (steps(Trunk(), {"ratio": 0.5}, samples=500)[1].program.module.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_shared_is_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.up = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 4, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.b(torch.relu(self.b(torch.relu(self.a(x)))))).flatten(1)

    _, repaired = steps(Net(), {"ratio": 0.5})
    assert not repaired.changed
    assert {r.node: r.reason for r in repaired.remarks} == {
        "b": "it is called more than once, or shares its tensors",
        "up": "transposed convolutions are not refitted",
        "": "nothing was refitted: no layer reads pruned channels",
    }


def test_infinities_are_refused() -> None:
    _, repaired = steps(Trunk(), {"layers": {"a": 0.5}}, [torch.full((4, 3, 8, 8), torch.inf)])
    assert missed(repaired)["b"] == "not refitted: there are infinities in what it reads or is to give"


def test_data_and_options_are_checked() -> None:
    program = trace(Trunk().eval(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(OptionError, match=r"calibration data, and none were given\n  try: give calibration images"):
        PassPipeline.parse("prune{ratio=0.5},reconstruct").run(program)
    with pytest.raises(SourceError, match=r"of shape \(3, 8, 8\), not batches of shape \('N', 3, 8, 8\)"):
        PassPipeline([Prune(ratio=0.5), Reconstruct(data=[torch.zeros(3, 8, 8)])]).run(program)
    with pytest.raises(SourceError, match="there are no calibration data"):
        PassPipeline([Prune(ratio=0.5), Reconstruct(data=[])]).run(program)
    with pytest.raises(OptionError, match="was not told which that is"):
        Reconstruct(data=DATA).run(program)
    with pytest.raises(OptionError, match="rounds=-1 is out of range"):
        Reconstruct(rounds=-1)
    with pytest.raises(OptionError, match="samples=0 is out of range"):
        Reconstruct(samples=0)


def test_an_artefact_is_made_again_from_its_files(tmp_path: Path) -> None:
    found = inputs.load("digits")
    compiled = secateur.compile(
        found.module,
        found.example_inputs(),
        pipeline="prune{macs=0.5},reconstruct{samples=2000},fold-bn",
        source=found.spec,
        data=open_for(found, "digits", limit=96),
    )
    stretches = compiled.report["verification"]["stretches"]
    assert [s["contract"] for s in stretches] == ["masked", "approximate", "exact"]
    assert stretches[1]["measured"]["agreement_after"] > stretches[1]["measured"]["agreement_before"]
    assert verify(compiled.save(tmp_path / "digits")).to_json()["holds"]
