"""Learning rates against closed forms."""

import math

import pytest

from secateur.backends.training.recipe import Recipe
from secateur.backends.training.schedule import learning_rate, milestones

STEPS = 10


def rates(recipe: Recipe) -> list[float]:
    return [learning_rate(recipe, step, STEPS) for step in range(recipe.epochs * STEPS)]


def test_constant() -> None:
    assert set(rates(Recipe(epochs=2, lr=0.3, schedule="constant"))) == {0.3}


def test_step_lowers_the_rate_every_so_many_epochs() -> None:
    found = rates(Recipe(epochs=5, lr=1.0, schedule="step", step_size=2, gamma=0.5))
    assert found[::STEPS] == [1.0, 1.0, 0.5, 0.5, 0.25]
    assert found[19] == 1.0


@pytest.mark.parametrize(
    ("epochs", "wanted"), [(4, [2, 3]), (160, [80, 120]), (50, [25, 38]), (7, [4, 5]), (1, [0, 1])]
)
def test_milestones_are_fractions_of_any_number_of_epochs(epochs: int, wanted: list[int]) -> None:
    recipe = Recipe(epochs=epochs, lr=1.0, schedule="multistep")
    assert milestones(recipe) == wanted
    expected = [0.1 ** sum(m <= epoch for m in wanted) for epoch in range(epochs)]
    assert rates(recipe)[::STEPS] == pytest.approx(expected)


def test_milestones_may_be_epochs() -> None:
    assert milestones(Recipe(epochs=300, milestones=(100, 200))) == [100, 200]


def test_exp() -> None:
    found = rates(Recipe(epochs=3, lr=2.0, schedule="exp", gamma=0.9))
    assert found[::STEPS] == pytest.approx([2.0, 1.8, 1.62])


def test_cosine() -> None:
    found = rates(Recipe(epochs=2, lr=1.0, schedule="cosine"))
    assert found == pytest.approx([(1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)])


def test_onecycle_rises_and_falls() -> None:
    found = rates(Recipe(epochs=10, lr=1.0, schedule="onecycle"))
    assert found[0] == pytest.approx(1 / 25)
    assert max(found) == found[30] == pytest.approx(1.0)
    assert found[15] == pytest.approx((1 + 1 / 25) / 2)
    assert found[-1] < 1e-3
    assert found[:31] == sorted(found[:31])
    assert found[30:] == sorted(found[30:], reverse=True)


def test_warmup_is_a_straight_line_to_the_policy() -> None:
    found = rates(Recipe(epochs=4, lr=1.0, schedule="cosine", warmup=1))
    assert found[:STEPS] == pytest.approx([(step + 1) / STEPS for step in range(STEPS)])
    assert found[STEPS] == 1.0
    assert found[25] == pytest.approx((1 + math.cos(math.pi * 0.5)) / 2)
