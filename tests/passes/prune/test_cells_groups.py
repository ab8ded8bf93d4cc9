"""Whole groups of convolutions and norms."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.cost import measure
from secateur.compiler.cost_model import CostModel
from secateur.compiler.errors import InternalError
from secateur.compiler.plan import compose
from secateur.compiler.program import Program
from secateur.compiler.proof import prove
from secateur.passes.base import PassResult, RemarkKind
from secateur.passes.prune.cuts import Opened
from secateur.passes.prune.prune import Prune
from secateur.passes.slicing.plan import plan_of as make_plan
from secateur.passes.slicing.rewrite import rewrite
from secateur.passes.slicing.tensors import KeptChannels, slice_tensors
from support import emitted
from support.pruning import kept_of, plan_of, prune

GroupedConv = nn.Conv2d | nn.ConvTranspose2d


def unit(i: int, o: int, k: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, groups=groups, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)


class ResNeXt(nn.Module):
    """A bottleneck with groups, and a shortcut around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = unit(3, 16), unit(16, 24, 1), unit(24, 24, groups=4), nn.Conv2d(24, 16, 1)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.c(self.b(self.a(x))))


class Chain(nn.Module):
    """Layers with a stem before and a head behind."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = unit(3, 24), nn.LazyConv2d(3, 1)
        for number, layer in enumerate(layers):
            self.add_module("abc"[number], layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.stem, *(m for name, m in self.named_children() if name in "abc"), self.head):
            x = layer(x)
        return x


NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "ResNeXt": (ResNeXt, {"b.0": 2}),
    "two in a row": (lambda: Chain(unit(24, 24, groups=4), unit(24, 32, groups=4)), {"a.0": 2, "b.0": 2}),
    "finer and finer": (lambda: Chain(unit(24, 24, groups=4), unit(24, 48, groups=12)), {"a.0": 2, "b.0": 6}),
    "4 and 6: in halves": (lambda: Chain(unit(24, 24, groups=4), unit(24, 24, groups=6)), {"a.0": 2, "b.0": 3}),
    "shuffled for a plain one": (
        lambda: Chain(unit(24, 24, groups=4), Shuffle(), nn.Conv2d(24, 12, 3)),
        {"a.0": 2},
    ),
    "transposed": (
        lambda: Chain(nn.ConvTranspose2d(24, 16, 2, 2, groups=4), nn.BatchNorm2d(16)),
        {"a": 2},
    ),
    "a norm of groups": (lambda: Chain(nn.Conv2d(24, 24, 3), nn.GroupNorm(6, 24)), {"b": 3}),
    "a norm in groups": (
        lambda: Chain(nn.Conv2d(24, 24, 3, groups=4), nn.GroupNorm(8, 24)),
        {"a": 2, "b": 4},
    ),
    "a norm without weights": (
        lambda: Chain(nn.Conv2d(24, 24, 3), nn.GroupNorm(4, 24, affine=False), nn.Conv2d(24, 9, 1)),
        {"b": 2},
    ),
    "one is left": (lambda: Chain(unit(24, 24, groups=2), unit(24, 24, groups=6)), {"a.0": 1, "b.0": 3}),
}
every_net = pytest.mark.parametrize("name", NETS)


def captured(module: nn.Module) -> Program:
    torch.manual_seed(0)
    module(torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    return trace(module, torch.zeros(2, 3, 8, 8))


def program_of(name: str) -> Program:
    torch.manual_seed(0)
    return captured(NETS[name][0]())


def groups_of(result: PassResult, names: dict[str, int]) -> dict[str, int]:
    layers: dict[str, Any] = {name: result.program.owner(name) for name in names}
    return {k: layer.num_groups if isinstance(layer, nn.GroupNorm) else layer.groups for k, layer in layers.items()}


@every_net
def test_half_of_the_groups(name: str) -> None:
    """The others are as wide as before, and all that reads or feeds the groups follows."""
    program, groups = program_of(name), NETS[name][1]
    result, proof = prune(program, ratio=0.5, cells="drop", criterion="random")
    assert not proof.vacuous
    assert groups_of(result, groups) == groups
    for layer in groups:
        before: Any = program.owner(layer)
        after: Any = result.program.owner(layer)
        if isinstance(before, GroupedConv):
            assert after.in_channels // after.groups == before.in_channels // before.groups
            assert after.out_channels // after.groups == before.out_channels // before.groups
    emitted.check(result.program)


def test_inputs_and_outputs_of_a_group_go_together() -> None:
    result, _ = prune(program_of("ResNeXt"), ratio=0.5, cells="drop", criterion="random")
    outputs = kept_of(result, "b.0.weight")
    assert outputs == kept_of(result, "a.0.weight") == kept_of(result, "c.weight", 1) == kept_of(result, "b.1.bias")
    assert len({row // 6 for row in outputs}) == 2
    assert 1 not in plan_of(result).kept["b.0.weight"], "what is left of a group is all of it"


@every_net
def test_no_tensor_may_be_forgotten(name: str) -> None:
    """Were one axis of one tensor left whole, the program would not run, or not be what the mask makes of it."""
    program = program_of(name)
    deps = analyze(program, whole_cells=True)
    kept = Prune(ratio=0.5, cells="drop", criterion="random").choose(Opened(program, deps, ())).kept
    plan = make_plan(kept, slice_tensors(program, kept)[1])
    grouped = {use.name for use in deps.slices if use.atoms.ndim == 2}
    cut = {(use.name, use.axis) for use in deps.slices if not kept.stays_put(use.atoms)}
    for name_, axis in cut:
        axes = (0, 1) if name_ in grouped else (axis,)
        rest = tuple(use for use in deps.slices if use.name != name_ or use.axis not in axes)
        forgetful = KeptChannels(replace(deps, slices=rest), kept.classes)
        try:
            wrong = rewrite(program, slice_tensors(program, forgetful)[0], forgetful)
            holds = prove(program, wrong.module, plan).holds
        except (InternalError, RuntimeError):
            continue
        assert not holds, (name_, axis)


@every_net
@pytest.mark.parametrize("orders", [("shrink", "drop", "shrink"), ("drop", "shrink", "drop"), ("drop", "drop")])
def test_one_after_the_other(name: str, orders: tuple[str, ...]) -> None:
    """Channels inside of groups and whole groups in turn: one plan says what is left of the original."""
    program = now = program_of(name)
    plans = []
    for seed, cells in enumerate(orders):
        result, _ = prune(now, ratio=0.34, cells=cells, criterion="random", seed=seed)
        plans.append(result.plan)
        now = result.program
    whole = compose(plans, {key: tensor.shape for key, tensor in program.tensors()})
    assert prove(program, now.module, whole).require().holds


@every_net
def test_costs_are_predicted(name: str) -> None:
    program = program_of(name)
    deps = analyze(program, whole_cells=True)
    chosen = Prune(ratio=0.5, cells="drop").choose(Opened(program, deps, ()))
    found, measured = (
        CostModel(program, deps)(chosen.kept.classes),
        measure(prune(program, ratio=0.5, cells="drop")[0].program),
    )
    assert (found.params, found.macs) == (measured.params, measured.macs)


@pytest.mark.parametrize(
    ("layers", "cells", "node"),
    [
        ((unit(24, 24, groups=4), Shuffle(), unit(24, 24, groups=4)), 4, "c_0"),
        ((unit(24, 24, groups=2), unit(24, 24, groups=3)), 2, "b_0"),
    ],
    ids=["mixed by a shuffle", "2 and 3"],
)
def test_groups_that_cannot_go(layers: tuple[nn.Module, ...], cells: int, node: str) -> None:
    result = Prune(ratio=0.5, cells="drop").run(captured(Chain(*layers)))
    assert not result.changed
    reasons = [r.reason for r in result.remarks if r.kind is RemarkKind.MISSED and r.node == "stem.0"]
    assert reasons == [
        f"its {cells} cells stay, since none goes without the others: "
        f"a group of a convolution goes as a whole (node {node})"
    ]


@pytest.mark.parametrize("behind", [nn.Conv2d(12, 3, 1), nn.Conv2d(12, 3, 1, groups=3)])
def test_groups_of_an_input_stay(behind: nn.Module) -> None:
    """Which is said once, whatever else holds them together."""
    program = trace(nn.Sequential(nn.Conv2d(4, 12, 3, groups=2), behind), torch.zeros(2, 4, 8, 8))
    result = Prune(ratio=0.5, cells="drop").run(program)
    (reason,) = [r.reason for r in result.remarks if r.node == "0"]
    assert reason == "stays whole: the model's input 'input_1' carries no removable channels (node _0)"


def test_the_same_channels_in_several_groups() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 8, 1, groups=2), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(self.conv(torch.cat((x, x), 1)))

    result = Prune(ratio=0.5, cells="drop").run(captured(Twice()))
    (reason,) = [r.reason for r in result.remarks if r.node == "stem"]
    assert reason == "its 2 cells stay, since none goes without the others: they share channels (node conv)"


def test_a_layer_whose_groups_cannot_go_says_so() -> None:
    program = captured(Chain(unit(24, 24, groups=2), unit(24, 24, groups=3)))
    result = Prune(layers={"a.0": 0.5}, cells="drop").run(program)
    assert "stays as it is: none of its cells can go alone" in [r.reason for r in result.remarks]


def test_depthwise_channels_go_one_by_one() -> None:
    """A group of one channel is a channel."""
    program = captured(Chain(unit(24, 24, groups=24), nn.Conv2d(24, 12, 1)))
    both = [plan_of(prune(program, ratio=0.4, cells=cells)[0]) for cells in ("drop", "shrink")]
    assert both[0].kept == both[1].kept
