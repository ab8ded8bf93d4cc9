"""Regions: what is traced of a model that is not traceable, what is connected, and what stays."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.analysis import analyze
from secateur.compiler.errors import CaptureError
from secateur.compiler.regions import find_regions
from support.glue import Glue, Maps, X, border, is_free, paths, pinned, regions_of
from support.pruning import group_of, prune, widths


def test_regions_of_a_model_with_python_between() -> None:
    model = Glue()
    regions = regions_of(model)
    assert paths(regions) == ["backbone", "head"]
    assert regions.outside == {}
    assert regions.contracts == ()
    assert [(i.name, i.shape) for i in regions.program.inputs] == [("backbone_input", (2, 3, 8, 8))]
    names = {name for name, _ in regions.program.tensors()}
    assert names == set(model.state_dict())
    assert is_free(regions, "backbone.0")
    assert is_free(regions, "head.0")
    assert pinned(regions, "head.2") == [border(regions, "head")]
    assert border(regions, "head") == "Python code reads it: unbind in the model"


def test_the_program_computes_what_the_regions_do() -> None:
    model = Glue().eval()
    regions = find_regions(model, X)
    (scores,) = regions.program.module(X)
    torch.testing.assert_close(scores, model.head(model.backbone(X)))
    first, second = regions.regions
    (features,) = first.run(model.backbone, [X])
    assert torch.equal(second.run(model.head, [features])[0], model.head(model.backbone(X)))
    assert first.outputs == second.inputs


def test_the_same_model_pruned_as_one_and_by_regions() -> None:
    """Where the whole can be traced, it is one region, and regions find the same groups."""
    whole = nn.Sequential(OrderedDict(Glue().named_children())).eval()
    one, two = regions_of(whole), regions_of(Glue())
    assert paths(one) == [""]
    assert one.borders[0].reason == "the model returns it"
    results = [prune(regions.program, ratio=0.5)[0] for regions in (one, two)]
    assert widths(results[0]) == widths(results[1]) == {"backbone.0": 4, "head.0": 3, "head.2": 2}


def test_the_model_is_left_as_it_was() -> None:
    model = Glue().train()
    model.head.eval()
    model.register_buffer("cache", None)
    before = [(dict(vars(m)), m.training) for m in model.modules()]
    find_regions(model, X)
    assert before == [(dict(vars(m)), m.training) for m in model.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# Structures, calls, weights.


class Levels(nn.Module):
    """A pyramid in a dict, a head over a list, and a head that Python calls level by level."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Maps()
        self.head = OverList()
        self.each = nn.Sequential(nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1))

    def forward(self, x: Tensor) -> Any:
        features = self.backbone(x)
        scores = self.head(list(features.values()), scale=2.0)
        each = [self.each(level) for level in features.values()]
        return [float(s.sum()) for s in (*scores["scores"], *each)]


class OverList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 2, 1)

    def forward(self, levels: list[Tensor], scale: float) -> dict[str, Any]:
        return {"scores": [self.conv(level) * scale for level in levels], "scale": scale}


def test_lists_dicts_and_keywords() -> None:
    model = Levels()
    regions = regions_of(model)
    assert paths(regions) == ["backbone", "head", "each", "each"]
    backbone, head = regions.regions[:2]
    assert head.inputs == backbone.outputs
    assert len(head.outputs) == 2
    found = head.run(model.head, backbone.run(model.backbone, [X]))
    expected = model.head([*model.backbone(X).values()], 2.0)["scores"]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_head_that_is_called_once_per_level_couples_the_levels() -> None:
    deps = analyze(regions_of(Levels()).program)
    assert group_of(deps, "backbone.one") is group_of(deps, "backbone.two")
    assert group_of(deps, "backbone.one").prunable == 8
    assert group_of(deps, "each.0").prunable == 5


class Constant(nn.Module):
    """Makes a tensor of another size at each of its calls, which tracing computes once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor, factor: float) -> Tensor:
        return self.conv(x) * torch.full((1, 2, 1, 1), factor)


def test_constants_of_two_calls_are_two() -> None:
    class Calling(Glue):
        def __init__(self) -> None:
            super().__init__()
            self.head = Constant()

        def answer(self, scores: Any) -> Any:
            return [float(s.sum()) for s in scores]

        def forward(self, x: Tensor) -> Any:
            features = self.backbone(x)
            return self.answer([self.head(features, 2.0), self.head(features, 3.0)])

    model = Calling()
    regions = regions_of(model)
    twice, thrice = regions.program.module(X)
    torch.testing.assert_close(twice * 3, thrice * 2)


def test_a_weight_that_python_reads_stays() -> None:
    class Tied(Glue):
        def answer(self, scores: Tensor) -> Any:
            weight = self.get_parameter("head.0.weight")
            return [float(s.sum()) for s in (scores, weight)]

    regions = regions_of(Tied())
    assert "sum in the model" in border(regions, "head.0.weight")
    assert pinned(regions, "head.0") == [border(regions, "head.0.weight")]
    assert pinned(regions, "backbone.0") == [border(regions, "head.0.weight")]


def test_a_weight_that_is_handed_to_a_region_is_the_same_weight() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor, offset: Tensor) -> Tensor:
            return self.conv(x + offset)

    class Queries(Glue):
        def __init__(self) -> None:
            super().__init__()
            self.head = Adds()
            self.queries = nn.Parameter(torch.randn(1, 8, 1, 1))

        def forward(self, x: Tensor) -> Any:
            return self.answer(self.head(self.backbone(x), self.queries))

    regions = regions_of(Queries())
    assert is_free(regions, "backbone.0")
    assert "queries" in {use.name for use in analyze(regions.program).slices}


def test_children_of_what_does_not_trace() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(8, 8, 1)
            self.b = nn.Conv2d(8, 2, 1)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x) * self.scale if float(x.sum()) > -1e9 else x

    model = Glue()
    model.add_module("head", Branching())
    regions = regions_of(model)
    assert paths(regions) == ["backbone", "head.a", "head.b"]
    assert is_free(regions, "backbone.0")
    assert border(regions, "head.a") == "Python code reads it: sum in head"
    assert list(regions.outside) == ["head"]
    assert regions.outside["head"]


def test_no_samples_at_all() -> None:
    """A detector may find nothing for a head to look at."""

    class Empty(Glue):
        def between(self, features: Tensor) -> Tensor:
            return features[:0]

    regions = regions_of(Empty())
    assert [(i.name, i.shape) for i in regions.program.inputs[1:]] == [("head_input", (1, 8, 8, 8))]
    assert is_free(regions, "head.0")


def test_nothing_to_trace() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> list[float]:
            return x.tolist()

    with pytest.raises(CaptureError, match="nothing of Plain can be traced"):
        find_regions(Plain(), X)


def test_a_model_that_does_not_run() -> None:
    with pytest.raises(CaptureError, match=r"Glue does not run on these inputs: .*\n  at: backbone\.0\n"):
        find_regions(Glue(), torch.zeros(1, 4, 8, 8))


def test_a_model_that_is_another_one_at_every_call() -> None:
    class Fickle(Glue):
        calls = 0

        def between(self, features: Tensor) -> Tensor:
            Fickle.calls += 1
            return self.head[0:1](features).repeat(1, 2, 1, 1)[:, :8] if Fickle.calls > 1 else features

    with pytest.raises(CaptureError, match="other submodules each time"):
        find_regions(Fickle(), X)
