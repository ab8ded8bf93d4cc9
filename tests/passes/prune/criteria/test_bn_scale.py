"""bn-scale: absolute scale of the normalisation that follows."""

import numpy as np
import pytest
import torch

from secateur.passes.prune.criteria.base import Context
from secateur.passes.prune.scoring import score_classes
from support.pruning import deps_of, program_of, use_of
from support.scores import score, use


@pytest.mark.parametrize("kind", ["batch_norm", "instance_norm", "group_norm", "layer_norm"])
def test_the_scale_without_its_sign(kind: str) -> None:
    assert score("bn-scale", torch.tensor([-2.0, 0.5]), use(kind=kind)) == pytest.approx([2.0, 0.5])


def test_a_convolution_says_nothing() -> None:
    assert score("bn-scale", torch.ones(2, 3), use()) is None


def test_channels_without_norm_fall_back_to_l1() -> None:
    deps, program = deps_of("batch_norm"), program_of("batch_norm")
    context = Context(program, deps)
    scores = score_classes(context, "bn-scale")
    stem = deps.class_of[use_of(deps, "stem.weight").atoms]
    mid = deps.class_of[use_of(deps, "mid.weight").atoms]
    expected = program.attribute("norm.weight").abs().detach().numpy()
    assert scores[stem] == pytest.approx(expected, rel=1e-6)
    assert np.array_equal(scores[mid], score_classes(context, "l1")[mid])
