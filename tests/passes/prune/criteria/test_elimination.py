"""Columns that go class by class, against least squares from scratch."""

import pytest
import torch
from torch import Tensor

from secateur.passes.prune.criteria.elimination import Elimination

J, R = 14, 5
COLUMNS = {
    "one column each": [[3], [0], [7], [5], [12], [9]],
    "two each": [[3, 4], [0, 9], [7, 1], [12, 13]],
    "some with fewer": [[3, 4, 5], [0, -1, -1], [7, 2, -1], [-1, -1, -1], [10, 11, 12]],
    "all columns": [[i] for i in range(J)],
}


def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, J, generator=generator, dtype=torch.float64)
    return torch.randn(R, J, generator=generator, dtype=torch.float64), x.T @ x / 50


def loss_without(weight: Tensor, h: Tensor, gone: list[int]) -> float:
    """min over D with D_gone = -V_gone of tr(D H D^T), the other columns being free."""
    free = [i for i in range(J) if i not in gone]
    moved = torch.zeros_like(weight)
    moved[:, gone] = -weight[:, gone]
    moved[:, free] = -moved[:, gone] @ h[gone][:, free] @ torch.linalg.inv(h[free][:, free])
    return float((moved @ h @ moved.T).trace())


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("at_a_time", [1, 2])
def test_losses_add_up_to_that_of_least_squares(name: str, at_a_time: int) -> None:
    weight, h = problem()
    columns = torch.tensor(COLUMNS[name])
    problem_left = Elimination(weight.clone(), torch.linalg.inv(h), columns)
    order = list(range(len(columns)))[::-1]
    gone: list[int] = []
    total = 0.0
    while order:
        losses = problem_left.losses()
        for one in range(len(columns)):
            more = [*gone, *(c for c in COLUMNS[name][one] if c >= 0)] if one in order else gone
            assert total + float(losses[one]) == pytest.approx(loss_without(weight, h, more), abs=1e-9)
        chosen, order = order[:at_a_time], order[at_a_time:]
        problem_left.remove(torch.tensor(chosen))
        gone += [c for one in chosen for c in COLUMNS[name][one] if c >= 0]
        total = loss_without(weight, h, gone)
    assert not problem_left.losses().any()
