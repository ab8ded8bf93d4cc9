"""What narrowing costs: by the share of the score that goes and by who reads it, or as scores are."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.passes.prune.damage import damage_of
from secateur.passes.prune.selection import Limits, Selection


class Net(nn.Module):
    """A layer of four channels that two layers read, one of them beside two other channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 2, 1)
        self.c = nn.Conv2d(4, 3, 1)
        self.d = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.c(a) * 2 + self.d(torch.cat([a, b], 1))


def damages(currency: str) -> dict[int, list[float]]:
    deps = analyze(trace(Net().eval(), torch.zeros(1, 3, 2, 2)))
    scores = np.zeros(int(deps.class_of.max()) + 1)
    first, second = (deps.group_of(name) for name in ("a", "b"))
    assert first is not None
    assert second is not None
    scores[first.classes] = [4.0, 1.0, 3.0, 2.0]
    scores[second.classes] = [5.0, 5.0]
    selection = Selection(deps, scores, Limits(), lambda group: False)
    found = damage_of(deps, selection, "sum" if currency == "sum" else "share")
    widths = [selection.blocks[i].levels for i in range(len(found))]
    return {width: [float(x) for x in damage] for width, damage in zip(widths, found, strict=True) if width != 3}


def test_shares_count_for_every_reader() -> None:
    found = damages("share")
    readers = 1 + 4 / 6 + 1e-3
    assert found[4][1:] == pytest.approx([readers * -np.log(s / 10) for s in (4, 7, 9, 10)])
    assert found[2][1:] == pytest.approx([(2 / 6 + 1e-3) * -np.log(0.5), 0.0])


def test_estimates_of_the_loss_add_up() -> None:
    found = damages("sum")
    assert found[4][1:] == pytest.approx([6 / 20, 3 / 20, 1 / 20, 0.0])
    assert found[2][1:] == pytest.approx([5 / 20, 0.0])
