"""Numbers that make no sense are refused, and recipes survive JSON."""

import json
from typing import Any

import pytest

from secateur.backends.training.recipe import Recipe
from secateur.compiler.errors import OptionError


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"momentum": -1.0},
        {"optimizer": "sgdx"},
        {"schedule": "never"},
        {"augment": "mixup"},
        {"precision": "8-mixed"},
        {"label_smoothing": 1.0},
        {"distill": 1.5},
        {"warmup": 20.0},
        {"clip": 0.0},
        {"ema": 1.0},
        {"milestones": (0.75, 0.5)},
        {"milestones": (0.0,)},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Recipe(**wrong)


def test_through_json() -> None:
    recipe = Recipe(epochs=3, milestones=(0.3, 2), clip=1.0, ema=0.9, nesterov=True)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
