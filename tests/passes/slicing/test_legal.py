"""What may go together, as far as the analysis's declarations say."""

import numpy as np
import torch
from torch import nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.dependency import ChannelDependencies
from secateur.passes.slicing.legal import Bools, Legality
from support.pruning import deps_of, use_of


def classes(deps: ChannelDependencies, name: str, axis: int = 0) -> np.ndarray:
    return deps.class_of[use_of(deps, name, axis).atoms]


def grouped() -> ChannelDependencies:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 4, 1))
    return analyze(trace(model, torch.zeros(1, 3, 4, 4)))


def mask(legality: Legality, *chosen: np.ndarray) -> Bools:
    removed = np.zeros_like(legality.candidates)
    for some in chosen:
        removed[some] = True
    return removed


def test_candidates_are_what_a_layer_gives_and_nothing_pins() -> None:
    deps = deps_of("plain")
    candidates = Legality(deps).candidates
    assert candidates[classes(deps, "stem.weight")].all()
    assert not candidates[classes(deps, "head.weight")].any(), "the output"


def test_a_legal_choice_stays_as_it_is() -> None:
    legality = Legality(deps := grouped())
    removed = mask(legality, classes(deps, "0.weight")[[0, 5]])
    before = removed.copy()
    assert legality.restore(removed) == {}
    assert (removed == before).all()


def test_no_tensor_is_emptied() -> None:
    legality = Legality(deps := deps_of("plain"))
    stem = classes(deps, "stem.weight")
    removed = mask(legality, stem)
    assert legality.restore(removed) == {int(stem[0]): "a tensor would be left without channels"}
    assert removed[stem].tolist() == [False] + [True] * (len(stem) - 1)


def test_groups_are_levelled() -> None:
    legality = Legality(deps := grouped())
    stem = classes(deps, "0.weight")
    removed = mask(legality, stem[[0, 1, 2, 6]])
    back = legality.restore(removed)
    assert set(back.values()) == {"a grouped convolution needs as many channels in every group"}
    assert (~removed[stem]).reshape(2, 4).sum(1).tolist() == [3, 3]


def test_a_group_goes_with_its_inputs_and_outputs_or_not_at_all() -> None:
    legality = Legality(deps := grouped())
    stem, mid = classes(deps, "0.weight"), classes(deps, "1.weight")
    removed = mask(legality, stem[:4], mid[:4])
    assert legality.restore(removed) == {}
    removed = mask(legality, stem[:4])
    assert len(legality.restore(removed)) == 4
    assert not removed.any()
