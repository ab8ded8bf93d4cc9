"""Auxiliary heads: one graph for both modes, from capture to artefact."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur
from secateur.compiler import auxiliary, cost
from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.errors import ProofError
from secateur.compiler.plan import Plan
from secateur.compiler.proof import prove

INPUT = torch.zeros(1, 3, 8, 8)


class Answers(NamedTuple):
    logits: Tensor
    early: Tensor
    late: Tensor


class Heads(nn.Module):
    """Two heads, on the first and the second feature map; a dropout that works by the root's flag between them."""

    def __init__(self, *, inplace: bool = False, named: bool = True) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.early = nn.Sequential(
            nn.Conv2d(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
        )
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace)
        self.late = nn.Linear(8, 5)
        self.fc = nn.Linear(8, 5)
        self.named = named

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        early = self.early(x) if self.training else None
        x = self.relu(self.second(x))
        late = self.late(x.mean((2, 3))) if self.training else None
        x = F.dropout(x, 0.5, self.training)
        x = self.fc(x.mean((2, 3)))
        if not self.training:
            return x
        return Answers(x, early, late) if self.named and early is not None and late is not None else (early, x, late)


class Other(nn.Module):
    """Answers differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        if self.training:
            return self.fc(2 * x.mean((2, 3))), x
        return self.fc(x.mean((2, 3)))


class Overwriting(nn.Module):
    """The head reads what the trunk overwrites afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        head = self.head(x.mean((2, 3))) if self.training else None
        x = F.relu_(x)
        answer = self.fc(x.mean((2, 3)))
        return (answer, head) if self.training else answer


def of(**options: bool) -> Heads:
    torch.manual_seed(0)
    return Heads(**options).eval()


def shift(module: nn.Module, name: str) -> None:
    with torch.no_grad():
        module.get_parameter(name).add_(1)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("named", [True, False])
def test_one_program_does_what_the_model_does_in_both_modes(named: bool) -> None:
    model = of(named=named)
    program = trace(model, INPUT)
    assert program.notes == (auxiliary.NOTE,)
    module, x = program.module.eval(), images()
    assert torch.equal(module(x), model(x))
    torch.manual_seed(3)
    expected = model.train()(x)
    torch.manual_seed(3)
    found = module.train()(x)
    assert type(found) is type(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_heads_are_not_computed_in_evaluation() -> None:
    module = trace(of(), INPUT).module.eval()
    called: list[str] = []
    for name in ("early.0", "late"):
        module.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    module(images())
    assert called == []
    module.train()(images())
    assert called == ["early.0", "late"]


def test_heads_have_parameters_and_groups_and_no_macs() -> None:
    model = of()
    program = trace(model, INPUT)
    plain = trace(
        nn.Sequential(model.first, model.second, model.relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc), INPUT
    )
    assert cost.measure(program).macs == cost.measure(plain).macs
    assert cost.measure(program).params == sum(p.numel() for p in model.parameters())
    assert "early.0" in {layer for group in analyze(program).groups for layer in group.layers}


def test_heads_are_pruned_with_proof_written_and_read() -> None:
    model = of()
    compiled = secateur.compile(model, INPUT, pipeline="prune{ratio=0.5}")
    assert compiled.report["verification"]["holds"]
    module = compiled.module
    assert module.get_submodule("early.0").weight.shape == (3, 4, 1, 1)
    assert module.get_submodule("late").weight.shape == (5, 4)


def test_the_proof_sees_a_head_that_is_wrong() -> None:
    program = trace(of(), INPUT)
    module = program.module
    shift(module, "late.bias")
    with pytest.raises(ProofError):
        prove(trace(of(), INPUT), module, Plan()).require()


def test_an_artefact_has_its_heads_and_is_captured_again_with_them(tmp_path: Path) -> None:
    compiled = secateur.compile(of(), INPUT, pipeline="prune{ratio=0.5}")
    compiled.save(tmp_path / "made")
    assert "        if not self.training:\n            return " in (tmp_path / "made" / "model.py").read_text()
    module, x = secateur.load(tmp_path / "made"), images()
    assert torch.equal(module(x), compiled.module.eval()(x))
    torch.manual_seed(3)
    expected = compiled.module.train()(x)
    torch.manual_seed(3)
    found = module.train()(x)
    assert found._fields == Answers._fields
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    torch.stack([t.sum() for t in found]).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    again = secateur.compile(module.eval(), INPUT, pipeline="prune{ratio=0.5}")
    assert again.program.notes == (auxiliary.NOTE,)
    assert again.report["verification"]["holds"]


def test_a_written_model_is_proven_with_its_heads(tmp_path: Path) -> None:
    """Not a graph, and with a dropout that its own flag would switch on."""
    compiled = secateur.compile(of(), INPUT, pipeline="prune{ratio=0.5}")
    compiled.save(tmp_path / "made")
    module = secateur.load(tmp_path / "made")
    assert prove(compiled.original, module, compiled.plan).holds
    shift(module, "late.bias")
    assert not prove(compiled.original, module, compiled.plan).holds


def test_clean_up_for_inference_removes_them() -> None:
    compiled = secateur.compile(of(), INPUT, pipeline="prune{ratio=0.5},eliminate-identity,fold-bn")
    assert compiled.report["verification"]["holds"]
    assert auxiliary.answer_of(compiled.program.graph) is None
    assert auxiliary.NOTE not in compiled.program.notes
    assert not any(name.startswith(("early", "late")) for name, _ in compiled.module.named_parameters())
    assert isinstance(compiled.module.train()(images()), Tensor)


def test_without_training_leaves_the_program_alone() -> None:
    program = trace(of(), INPUT)
    before = str(program.graph)
    stripped = auxiliary.without_training(program)
    assert str(program.graph) == before
    assert torch.equal(stripped.module.eval()(images()), program.module.eval()(images()))
    assert auxiliary.without_training(stripped) is stripped


@pytest.mark.parametrize("model", [Other(), Overwriting()], ids=["another answer", "overwritten"])
def test_what_cannot_be_one_graph_is_captured_for_evaluation_with_a_note(model: nn.Module) -> None:
    program = trace(model.eval(), INPUT)
    assert auxiliary.answer_of(program.graph) is None
    assert "evaluation branch was captured" in program.notes[0]
    assert torch.equal(program.module.eval()(images()), model(images()))


def test_in_place_layers_of_the_trunk_are_no_hindrance() -> None:
    program = trace(of(inplace=True), INPUT)
    assert auxiliary.answer_of(program.graph) is not None
    model, x = of(inplace=True).train(), images()
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(program.module.train()(x), expected, strict=True))
