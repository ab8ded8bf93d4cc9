"""Pooling of regions of interest: its stand-in couples channels as it does."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from secateur.compiler.analysis import analyze
from support.detection import torchvision
from support.glue import Maps, border, is_free, pinned, regions_of
from support.pruning import group_of, prune


class Pooled(nn.Module):
    """Boxes by a head of its own, pooled features, and a second stage."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.backbone = Maps()
        self.pool = pool
        self.boxes = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), nn.Sigmoid())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 9, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> list[float]:
        features = self.backbone(x)
        corners = self.boxes(features["one"])
        pooled = self.pooled(features, corners)
        return self.head(pooled).tolist()

    def pooled(self, features: dict[str, Tensor], corners: Tensor) -> Tensor:
        boxes = [torch.cat([c[:2] * 0, c[2:] + 4])[None].repeat(3, 1) for c in corners]
        return self.pool(features, boxes, [(8, 8)] * len(boxes))


def test_pooling_couples_the_levels_with_what_reads_the_boxes() -> None:
    model = Pooled(torchvision().ops.MultiScaleRoIAlign(["one", "two"], 3, 2))
    regions = regions_of(model)
    assert regions.contracts == ("pool",)
    assert [(i.name, i.shape[0]) for i in regions.program.inputs] == [("backbone_input", 2), ("pool_boxes", 6)]
    deps = analyze(regions.program)
    group = group_of(deps, "backbone.one")
    assert group.prunable == group.width == 8
    assert group is group_of(deps, "backbone.two")
    assert group_of(deps, "head.1").prunable == 6
    assert "unbind in the model" in border(regions, "boxes")
    result, _ = prune(regions.program, ratio=0.5)
    linear: Any = result.program.owner("head.1")
    assert linear.in_features == 4 * 9


def test_levels_that_the_pooling_leaves_out_are_not_read_by_it() -> None:
    regions = regions_of(Pooled(torchvision().ops.MultiScaleRoIAlign(["one"], 3, 2)))
    deps = analyze(regions.program)
    assert group_of(deps, "backbone.one").prunable == 8
    assert group_of(deps, "backbone.two").prunable == 0
    assert border(regions, "backbone") == "no region reads it"


def test_a_subclass_promises_nothing() -> None:
    kind: Any = torchvision().ops.MultiScaleRoIAlign

    class Reversed(kind):
        def forward(self, *args: Any) -> Tensor:
            return super().forward(*args).flip(1)

    regions = regions_of(Pooled(Reversed(["one", "two"], 3, 2)))
    assert regions.contracts == ()
    assert pinned(regions, "backbone.one") == [border(regions, "backbone")]
    assert "head_input" in {i.name for i in regions.program.inputs}


def test_boxes_of_a_region_are_no_feature_map() -> None:
    class Direct(Pooled):
        def __init__(self) -> None:
            super().__init__(torchvision().ops.RoIAlign(3, 1.0, 2))
            self.boxes = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.ReLU())

        def pooled(self, features: dict[str, Tensor], corners: Tensor) -> Tensor:
            return self.pool(features["one"], corners)

    model = Direct()
    with torch.no_grad():
        last: Any = model.boxes[2]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 3.0, 3.0]))
    regions = regions_of(model)
    assert border(regions, "boxes") == "read by pool, and no feature map"
    assert pinned(regions, "boxes.2") == [border(regions, "boxes")]
    assert is_free(regions, "backbone.one")


def test_no_boxes_at_all() -> None:
    class Empty(Pooled):
        def pooled(self, features: dict[str, Tensor], corners: Tensor) -> Tensor:
            return self.pool(features, [c[None, :0].reshape(0, 4) for c in corners], [(8, 8)] * len(corners))

    regions = regions_of(Empty(torchvision().ops.MultiScaleRoIAlign(["one", "two"], 3, 2)))
    assert regions.program.inputs[1].shape[0] == 1
    assert is_free(regions, "head.1")


def test_stand_ins_are_operations_of_the_graph() -> None:
    regions = regions_of(Pooled(torchvision().ops.MultiScaleRoIAlign(["one", "two"], 3, 2)))
    called = [node.target for node in regions.program.graph.nodes if node.op == "call_function"]
    assert called.count(F.adaptive_avg_pool2d) == 2
    assert isinstance(regions.program.module, fx.GraphModule)
