"""Regions that run their graph, since their own code does not go along with what passes did."""

import copy

import pytest
import torch
from torch import Tensor, nn

from secateur.backends.regional import agreement
from secateur.backends.regional.prune import prune_regions
from secateur.compiler.errors import CompilerError
from support.detection import detector, images, layer_at, targets
from support.stubborn import SELECT, STUBBORN, Counting, Heads, X


@pytest.mark.parametrize("name", STUBBORN)
def test_a_region_whose_code_does_not_go_along_runs_its_graph(name: str) -> None:
    head, pipeline, where, _ = STUBBORN[name]
    model = Heads(head()).eval()
    kind, before = type(layer_at(model, where)), list(model.state_dict())
    compact, report = prune_regions(model, (X,), pipeline)
    assert report.rewritten == (where,)
    assert report.agreement <= 1e-9
    assert report.verification is not None
    assert report.verification["holds"]
    assert type(compact) is type(model)
    assert isinstance(layer_at(compact, where), kind)
    assert type(layer_at(model, where)) is kind
    assert set(compact.state_dict()) >= {n for n in before if "backbone.1" not in n}
    for changed in (compact.train(), copy.deepcopy(compact)):
        changed.zero_grad()
        torch.stack(changed(torch.randn(2, 3, 16, 16))).sum().backward()
        assert [n for n, p in changed.named_parameters() if p.grad is None] == []


def test_a_region_that_is_one_layer_and_reads_less_than_others() -> None:
    class TwoHeads(Heads):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(8, 4, 3))
            self.side = nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> list[Tensor]:
            features = self.backbone(x)
            return [s for head in (self.head, self.side) for s in head(features) if float(s.detach().sum()) < 1e9]

    model = TwoHeads().eval()
    compact, report = prune_regions(model, (X,), SELECT)
    assert dict(compact.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert set(report.rewritten) & {"head", "side"}
    assert report.agreement <= 1e-9
    for path in report.rewritten:
        layer = layer_at(compact, path)
        assert isinstance(layer, nn.Conv2d)
        assert layer.in_channels < layer_at(compact, "backbone.0").out_channels
    torch.stack(compact(torch.randn(2, 3, 16, 16))).sum().backward()


def test_layers_that_were_folded_are_gone_and_the_rest_computes_the_same() -> None:
    model = Heads(nn.Conv2d(8, 2, 1)).eval()
    layer_at(model, "backbone.1").running_mean.normal_()
    compact, _ = prune_regions(model, (X,), "fold-bn")
    assert [n for n in compact.state_dict() if n.startswith("backbone")] == ["backbone.0.weight", "backbone.0.bias"]
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(torch.stack(compact(x)), torch.stack(model(x)))


def test_what_runs_its_graph_can_be_pruned_again() -> None:
    once, first = prune_regions(detector("faster_rcnn"), (images(),), "prune{macs=0.5},fold-bn")
    twice, second = prune_regions(once, (images(),), "prune{macs=0.5}", own_code=True)
    assert first.rewritten == ("backbone",)
    assert second.regions == first.regions
    assert second.macs_before == first.macs_after
    assert second.agreement <= 1e-9
    assert len(twice(images(2))) == 2


def test_a_graph_takes_only_what_it_was_captured_for() -> None:
    class Scaled(Counting):
        def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
            return super().forward(x) * scale

    class Scaling(Heads):
        scale = 2.0

        def forward(self, x: Tensor) -> list[Tensor]:
            return [s for s in self.head(self.backbone(x), scale=self.scale) if float(s.detach().sum()) < 1e9]

    compact, _ = prune_regions(Scaling(Scaled()).eval(), (X,), "prune{ratio=0.5}")
    compact(X)
    compact.__dict__["scale"] = 3.0
    with pytest.raises(ValueError, match=r"Scaled was captured for 2\.0, and is given 3\.0"):
        compact(X)


@pytest.mark.parametrize("select", ["none", "all"])
def test_a_detector_with_all_the_passes(select: str) -> None:
    model = detector("retinanet")
    pipeline = f"prune{{macs=0.5 scope=global criterion=random select={select}}},fold-bn,eliminate-dead-code"
    compact, report = prune_regions(model, (images(),), pipeline)
    assert "backbone" in report.rewritten
    assert report.verification is not None
    assert report.verification["holds"]
    assert not [name for name in compact.state_dict() if "running_mean" in name]
    compact.train()
    torch.stack(list(compact(images(2), targets()).values())).sum().backward()
    assert [n for n, p in compact.named_parameters() if p.grad is None] == []


def test_a_graph_is_checked_like_a_regions_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "run_graph", lambda *_: None)
    with pytest.raises(CompilerError, match="the code of head does not go along"):
        prune_regions(Heads(Counting()).eval(), (X,), "prune{ratio=0.5}")
