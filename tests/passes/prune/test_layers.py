"""Layer by layer: fractions, counts, and what makes no sense."""

import pytest
import torch
from torch import nn

from secateur.compiler.capture import trace
from secateur.compiler.errors import OptionError
from secateur.passes.pipeline import PassPipeline


def test_layers_may_say_how_many_go_in_any_order() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 2, 1))
    program = trace(model, torch.zeros(1, 3, 4, 4))
    texts = ("0:3,2:7", "2:7,0:3")
    first, second = (PassPipeline.parse(f"prune{{layers={text}}}").run(program).program for text in texts)
    assert [len(p) for p in first.module.parameters()][::2] == [5, 5, 2]
    for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("text", "said"), [("0:8", "8 channels cannot go: there are 8"), ("0:9", "9 channels cannot go")]
)
def test_more_than_there_are_cannot_go(text: str, said: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with pytest.raises(OptionError, match=said):
        PassPipeline.parse(f"prune{{layers={text}}}").run(trace(model, torch.zeros(1, 3, 4, 4)))


@pytest.mark.parametrize("text", ["0:1.5", "0:-1", "0:x", "0", "0:nan"])
def test_numbers_that_are_neither_fractions_nor_counts_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="expected layer:fraction"):
        PassPipeline.parse(f"prune{{layers={text}}}")


def test_greedy_and_independent_choose_differently() -> None:
    """Filter 0 of the second layer is large only by what it reads of a channel that goes."""
    first, second = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(2, 1, 1))
    program = trace(model, torch.zeros(1, 1, 2, 2))
    model.get_parameter("0.weight").data = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    model.get_parameter("2.weight").data = torch.tensor([[9.0, 1.0], [1.0, 2.0]]).view(2, 2, 1, 1)
    kept: dict[str, list[float]] = {}
    for name in ("l1-independent", "l1-greedy"):
        result = PassPipeline.parse(f"prune{{criterion={name} layers=0:1,2:1}}").run(program)
        kept[name] = result.program.module.get_parameter("2.weight").flatten().tolist()
    assert kept == {"l1-independent": [1.0], "l1-greedy": [2.0]}
