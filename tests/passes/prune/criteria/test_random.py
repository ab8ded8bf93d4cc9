"""random: the control."""

import torch

from secateur.compiler.dependency import Role
from support.scores import score, use


def test_the_same_seed_draws_the_same_numbers() -> None:
    first, again, other = (score("random", torch.ones(2, 3), use(), seed) for seed in (1, 1, 2))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.tolist() == again.tolist() != other.tolist()
    assert all(0.0 <= s < 1.0 for s in first)


def test_only_producers_draw() -> None:
    assert score("random", torch.ones(2, 3), use(1, role=Role.CONSUMES)) is None
