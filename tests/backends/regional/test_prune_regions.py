"""Detectors: the networks shrink, and the Python around them finds what it expects."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.backends.regional.agreement import check_regions
from secateur.backends.regional.prune import RegionsReport, prune_regions
from secateur.backends.regional.write_back import write_back
from secateur.compiler.errors import CompilerError
from secateur.compiler.regions import find_regions
from secateur.passes.prune.prune import Prune
from support.detection import DETECTORS, WIDTH, detector, images, layer_at, targets
from support.stubborn import STUBBORN, Counting, Heads, X


@cache
def pruned(name: str) -> tuple[nn.Module, nn.Module, RegionsReport]:
    """A detector, the same at half of its MACs, and what was done."""
    model = detector(name)
    return model, *prune_regions(model, (images(),), "prune{macs=0.5}")


def masked(model: nn.Module, report: RegionsReport) -> nn.Module:
    """The detector whose weights read nothing of what was removed, in float64."""
    masked = copy.deepcopy(model).double()
    for name, weight in masked.named_parameters():
        kept: Any = report.plan.kept.get(name, {})
        owner = masked.get_submodule(name.rpartition(".")[0])
        axis = 0 if isinstance(owner, nn.ConvTranspose2d) else 1
        if weight.ndim > 1 and axis in kept and not (kept[axis] and isinstance(kept[axis][0], list)):
            gone = sorted(set(range(weight.shape[axis])) - set(kept[axis]))
            weight.data.index_fill_(axis, torch.tensor(gone, dtype=torch.int64), 0.0)
    return masked


@pytest.mark.parametrize("name", DETECTORS)
def test_half_of_the_macs(name: str) -> None:
    model, compact, report = pruned(name)
    assert type(compact) is type(model)
    assert list(compact.state_dict()) == list(model.state_dict())
    assert report.verification is not None
    assert report.verification["holds"]
    assert not report.verification["vacuous"]
    assert report.agreement <= 1e-9
    assert report.macs_after / report.macs_before == pytest.approx(0.5, abs=0.06)
    assert report.prunable_convolutions >= 0.9
    assert sum(p.numel() for p in compact.parameters()) < 0.75 * sum(p.numel() for p in model.parameters())
    assert report.outside == {}


@pytest.mark.parametrize("name", DETECTORS)
def test_same_call_and_same_kind_of_answer(name: str) -> None:
    model, compact, _ = pruned(name)
    with torch.no_grad():
        before, after = model(images(2)), compact(images(2))
    assert pytree.tree_structure(before) == pytree.tree_structure(after)
    for mine, theirs in zip(pytree.tree_leaves(after), pytree.tree_leaves(before), strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape[1:] == theirs.shape[1:]


@pytest.mark.parametrize("name", DETECTORS)
def test_trains_with_targets(name: str) -> None:
    _, compact, _ = pruned(name)
    model = copy.deepcopy(compact).train()
    losses = model(images(2), targets())
    torch.stack(list(losses.values())).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", [name for name in DETECTORS if name != "fcos"])  # its norms see fewer channels
def test_boxes_are_those_of_the_masked_detector(name: str) -> None:
    """Through all of the Python code, which the proof knows nothing of."""
    model, compact, report = pruned(name)
    inputs = [image.double() for image in images(2)]
    with torch.no_grad():
        expected = pytree.tree_leaves(masked(model, report)(inputs))
        found = pytree.tree_leaves(copy.deepcopy(compact).double()(inputs))
        original = pytree.tree_leaves(copy.deepcopy(model).double()(inputs))
    assert any(x.numel() for x in expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-7)
    assert any(a.shape != b.shape or not torch.allclose(a, b) for a, b in zip(original, expected, strict=True))


@pytest.mark.parametrize("name", DETECTORS)
def test_in_training_nothing_else_is_read(name: str) -> None:
    _, _, report = pruned(name)
    model = detector(name)
    regions = find_regions(model, images(), training=(images(2), targets()))
    assert regions.borders == report.borders


def test_the_pyramid_shrinks_with_all_that_read_it() -> None:
    _, compact, report = pruned("mask_rcnn")
    width = layer_at(compact, "backbone.fpn.layer_blocks.0.0").out_channels
    assert 0 < width < WIDTH
    assert layer_at(compact, "backbone.fpn.layer_blocks.1.0").out_channels == width
    assert layer_at(compact, "rpn.head.conv.0.0").in_channels == width
    assert layer_at(compact, "roi_heads.box_head.fc6").in_features == 9 * width
    assert layer_at(compact, "roi_heads.mask_head.0.0").in_channels == width
    assert layer_at(compact, "backbone").out_channels == width  # what it says of itself
    assert report.contracts == ("roi_heads.box_roi_pool", "roi_heads.mask_roi_pool")
    assert layer_at(compact, "rpn.head.cls_logits").out_channels == 3
    assert layer_at(compact, "roi_heads.mask_predictor.mask_fcn_logits").out_channels == 3


def test_the_model_stays_as_it_was() -> None:
    model = detector("faster_rcnn")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    layer_at(model, "backbone.body.stem.1").eval()  # a frozen norm
    compact, _ = prune_regions(model, (images(),), "prune{ratio=0.5}", verify=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert layer_at(model, "roi_heads.box_roi_pool").scales is None
    for one in (model, compact):
        assert one.training
        assert layer_at(one, "rpn.head.conv").training
        assert not layer_at(one, "backbone.body.stem.1").training
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in compact.parameters()}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_report_is_json() -> None:
    import json

    _, _, report = pruned("ssd")
    data = json.loads(json.dumps(report.to_json()))
    assert data["pipeline"] == "prune{macs=0.5}"
    assert data["regions"] == ["backbone", "head"]
    assert {b["source"] for b in data["borders"]} == {"head"}
    assert data["plan"]["kept"]["backbone.body.stem.0.weight"]["0"]


def test_frozen_norms_of_torchvision_shrink_too() -> None:
    model = detector("retinanet")
    frozen: Any = __import__("torchvision").ops.FrozenBatchNorm2d
    norm = frozen(8)
    layer_at(model, "backbone.body.stem")[1] = norm
    compact, report = prune_regions(model, (images(),), "prune{ratio=0.5}")
    assert report.verification is not None
    assert report.verification["holds"]
    assert layer_at(compact, "backbone.body.stem.1").weight.shape == (4,)
    assert norm.weight.shape == (8,)


# Code that does not go along.


@pytest.mark.parametrize("name", STUBBORN)
def test_a_region_whose_code_does_not_go_along_is_named(name: str) -> None:
    head, pipeline, where, why = STUBBORN[name]
    with pytest.raises(CompilerError, match=f"the code of {where} does not go along with the pruned layers: {why}"):
        prune_regions(Heads(head()).eval(), (X,), pipeline, own_code=True)


def test_a_region_with_a_literal_can_be_excluded() -> None:
    compact, report = prune_regions(Heads(Counting()).eval(), (X,), "prune{ratio=0.5 exclude=head.*}", own_code=True)
    assert layer_at(compact, "backbone.0").out_channels == layer_at(compact, "head.conv").in_channels == 4
    assert report.agreement <= 1e-9


class CountingGlue(Heads):
    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.backbone(x)
        if features.shape[1] != 8:
            raise RuntimeError("eight channels, please")
        return [s for s in self.head(features) if float(s.detach().sum()) < 1e9]


def test_python_code_between_the_regions_that_counts_channels() -> None:
    model = CountingGlue(nn.Conv2d(8, 2, 1)).eval()
    with pytest.raises(CompilerError, match=r"own code does not go along .*eight channels, please"):
        prune_regions(model, (X,), "prune{ratio=0.5}")


def test_a_wrong_layer_in_the_copy_is_found() -> None:
    model = Heads(nn.Conv2d(8, 2, 1)).eval()
    regions = find_regions(model, X)
    compact = Prune(ratio=0.5).run(regions.program).program
    copied = write_back(model, regions.program, compact)
    assert check_regions(copied, regions, compact) <= 1e-9
    with torch.no_grad():
        layer_at(copied, "backbone.0").weight[0] += 1e-3
    with pytest.raises(CompilerError, match=r"the code of backbone .* its result is off by"):
        check_regions(copied, regions, compact)
    with torch.no_grad():
        layer_at(copied, "backbone.0").weight[0] = float("nan")
    with pytest.raises(CompilerError, match=r"the code of backbone .* its result is off by inf"):
        check_regions(copied, regions, compact)


def test_layers_are_replaced_under_all_their_names() -> None:
    model = Heads(nn.Conv2d(8, 2, 1)).eval()
    model.register_module("alias", layer_at(model, "backbone.0"))
    model.__dict__["list"] = [layer_at(model, "backbone.0"), layer_at(model, "backbone.1").weight]
    compact, _ = prune_regions(model, (X,), "prune{ratio=0.5}")
    assert layer_at(compact, "alias") is layer_at(compact, "backbone.0")
    assert layer_at(compact, "alias").out_channels == 4
    assert compact.__dict__["list"][0] is layer_at(compact, "alias")
    assert compact.__dict__["list"][1] is layer_at(compact, "backbone.1").weight


def test_what_python_gives_and_does_not_follow_the_batch() -> None:
    class Offset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor, offset: Tensor) -> Tensor:
            return self.conv(x + offset)

    class Table(Heads):
        def forward(self, x: Tensor) -> list[Tensor]:
            scores = self.head(self.backbone(x), torch.arange(14.0 * 14).view(14, 14))
            return [s for s in scores if float(s.detach().sum()) < 1e9]

    model = Table(Offset()).eval()
    with pytest.raises(CompilerError, match=r"do not run on 2 and 3 samples of all .*head_input \[14, 14\]"):
        prune_regions(model, (X,), "prune{ratio=0.5}")
    compact, report = prune_regions(model, (X,), "prune{ratio=0.5}", verify=False)
    assert report.verification is None
    assert report.agreement <= 1e-9
    assert layer_at(compact, "head.conv").in_channels == 4
