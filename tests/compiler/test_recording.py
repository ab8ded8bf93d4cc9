"""Who reads what one region hands to another: everything that looks at values breaks a connection."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.compiler.regions import find_regions
from support.glue import Glue, X, border, is_free, paths, pinned, regions_of


def reading(read: Callable[[Tensor], Any]) -> nn.Module:
    class Reading(Glue):
        def between(self, features: Tensor) -> Any:
            read(features)
            return features

    return Reading()


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda x: x.mean(), "mean"),
        (lambda x: F.relu(x), "relu"),
        (lambda x: torch.cat([x, x]), "cat"),
        (lambda x: x[:, 0], "__getitem__"),
        (lambda x: x.detach(), "detach"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: x.data, "data"),
        (lambda x: bool((x > 0).all()), "gt"),
        (lambda x: x.relu_(), "relu_"),
        (lambda x: torch.ops.aten.sum(x), "sum"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_python_reads_stays(read: Callable[[Tensor], Any], name: str) -> None:
    regions = regions_of(reading(read))
    assert paths(regions) == ["backbone", "head"]
    assert name in border(regions, "backbone")
    assert pinned(regions, "backbone.0") == [border(regions, "backbone")]
    assert is_free(regions, "head.0")


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.shape,
        lambda x: (x.size(1), x.dim(), x.numel(), len(x), x.stride()),
        lambda x: (x.dtype, x.device, x.requires_grad, x.is_cuda, x.ndim),
        lambda x: x.is_floating_point(),
    ],
)
def test_sizes_and_types_may_be_looked_at(look: Callable[[Tensor], Any]) -> None:
    assert is_free(regions_of(reading(look)), "backbone.0")


class Elsewhere(Glue):
    """Reads the features as a compiled extension does, past what Python sees."""

    def between(self, features: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            features.sum()
        return features


def test_what_is_read_past_python_stays_too() -> None:
    regions = regions_of(Elsewhere())
    assert border(regions, "backbone") == "Python code reads it: aten.sum.default in the model"
    assert pinned(regions, "backbone.0") == [border(regions, "backbone")]


def test_what_is_passed_on_unchanged_stays_connected() -> None:
    class Flat(Glue):
        def __init__(self) -> None:
            super().__init__()
            self.backbone.append(nn.Flatten())
            self.head = nn.Sequential(nn.Linear(8 * 64, 6), nn.ReLU(), nn.Linear(6, 2))

        def between(self, features: Tensor) -> Tensor:
            return F.dropout(features.flatten(1).contiguous(), 0.5, self.training)

    assert is_free(regions_of(Flat()), "backbone.0")


def test_what_is_changed_in_place_is_not_what_it_was() -> None:
    class Changed(Glue):
        def between(self, features: Tensor) -> Tensor:
            return features.mul_(2)

    regions = regions_of(Changed())
    assert pinned(regions, "backbone.0") == [border(regions, "backbone")]
    assert [i.name for i in regions.program.inputs] == ["backbone_input", "head_input"]


def test_a_region_that_changes_what_another_one_reads() -> None:
    class Twice(Glue):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 6, 1))

        def between(self, features: Tensor) -> Tensor:
            float(self.first(features).sum())
            return features

    regions = regions_of(Twice())
    assert "changed in place before head reads it" in border(regions, "backbone")
    assert pinned(regions, "backbone.0") == [border(regions, "backbone")]


@dataclass
class Answer:
    features: Any
    scores: Tensor


@pytest.mark.parametrize(
    "wrapped", [lambda x: x, lambda x: [x], lambda x: Answer(x, x), lambda x: {"a": Answer([x], x)}]
)
def test_what_the_model_returns_stays_whatever_it_is_in(wrapped: Callable[[Tensor], Any]) -> None:
    class Returning(Glue):
        def forward(self, x: Tensor) -> Any:
            features = self.backbone(x)
            return wrapped(features), self.answer(self.head(features))

    regions = regions_of(Returning())
    assert border(regions, "backbone") == "the model returns it"
    assert pinned(regions, "backbone.0") == [border(regions, "backbone")]


def test_what_a_module_keeps_in_an_attribute_stays() -> None:
    class Keeping(Glue):
        def between(self, features: Tensor) -> Tensor:
            self.latest = [features]
            return features

    model = Keeping()
    regions = regions_of(model)
    assert border(regions, "backbone") == "Python code reads it: kept as latest"
    assert not hasattr(model, "latest")


def test_what_nobody_reads_stays() -> None:
    class Unused(Glue):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Conv2d(8, 4, 1)

        def between(self, features: Tensor) -> Tensor:
            self.auxiliary(features)
            return features

    regions = regions_of(Unused())
    assert border(regions, "auxiliary") == "no region reads it"
    assert pinned(regions, "auxiliary") == [border(regions, "auxiliary")]
    assert is_free(regions, "backbone.0")


# Training.


class Auxiliary(Glue):
    """Has a loss on its features."""

    def between(self, features: Tensor) -> Tensor:
        if self.training:
            self.loss = float(features.mean())
        return features


class Mixing(Glue):
    """Gives its head noise as well, when it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout()

    def between(self, features: Tensor) -> Tensor:
        if self.training:
            float(self.head(torch.randn(1, 8, 4, 4)).sum())
        return features


class Tied(Glue):
    """Keeps its weights small."""

    def answer(self, scores: Tensor) -> Any:
        weights = [self.get_parameter("head.0.weight")] if self.training else []
        return [float(s.sum()) for s in (*scores, *weights)]


@pytest.mark.parametrize(
    ("kind", "source", "reason", "layers"),
    [
        (Auxiliary, "backbone", "in training, Python code reads it: mean in the model", ["backbone.0"]),
        (Mixing, "backbone", "in training, head is given something else", ["backbone.0"]),
        (Tied, "head.0.weight", "Python code reads it: sum in the model", ["backbone.0", "head.0"]),
    ],
)
def test_what_is_read_in_training_stays(kind: type[Glue], source: str, reason: str, layers: list[str]) -> None:
    assert is_free(regions_of(kind()), "backbone.0")
    regions = regions_of(kind(), X, training=(X,))
    assert border(regions, source) == reason
    for layer in layers:
        assert set(pinned(regions, layer)) == {reason}


def test_a_model_that_does_in_training_what_it_always_does() -> None:
    regions = regions_of(Glue(), X, training=(X,))
    assert [b.source for b in regions.borders] == ["head"]
    assert is_free(regions, "backbone.0")


def test_watching_leaves_statistics_and_generator_as_they_were() -> None:
    model = Mixing()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    find_regions(model, X, training=(X,))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
