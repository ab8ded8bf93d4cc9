"""Layers that read fewer channels than others do: where cuts stand, how they become slices, and whether they pay."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.cost import measure
from secateur.compiler.errors import BudgetError, OptionError
from secateur.compiler.program import Program
from secateur.compiler.proof import prove
from secateur.passes.base import PassResult
from secateur.passes.compensate.reconstruct import Reconstruct
from secateur.passes.pipeline import PassPipeline
from secateur.passes.prune.cuts import open_inputs
from secateur.passes.prune.prune import Prune
from secateur.passes.prune.subsets import Subsets
from secateur.passes.prune.unconstrained import Unconstrained
from secateur.passes.slicing.plan import plan_of as slicing_plan
from secateur.passes.slicing.rewrite import rewrite
from secateur.passes.slicing.tensors import slice_tensors
from support.compensation import error, images
from support.exact import lively
from support.pruning import plan_of, program_of, prune, widths
from support.zoo import ZOO


class Readers(nn.Module):
    """A trunk of 16 channels, and layers that read it."""

    def __init__(self, count: int, outputs: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.readers = nn.ModuleList(nn.Conv2d(16, outputs, 3, padding=1) for _ in range(count))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x).relu()
        return tuple(conv(x) for conv in self.readers)


def kept(result: PassResult, layer: str) -> list[int]:
    """The original input channels of a layer, in the order in which it reads them."""
    found: Any = plan_of(result).kept.get(f"{layer}.weight", {}).get(1)
    return list(range(16)) if found is None else found


def calls(program: Program) -> dict[str, int]:
    """How many slices and gathers a program has."""
    names = [getattr(node.target, "__name__", "") for node in program.graph.nodes]
    return {name: names.count(name) for name in ("narrow", "index_select", "cat")}


def selected(module: nn.Module, *shape: int, **options: Any) -> PassResult:
    """Prune with selection everywhere, and prove."""
    program = trace(module.eval(), torch.zeros(shape or (1, 3, 8, 8)))
    return prune(program, **{"select": "all", "scope": "global", "criterion": "l1", "normalize": "none", **options})[0]


def reading(module: nn.Module, *wanted: Collection[int], paying: bool = False, size: int = 8) -> PassResult:
    """Let the layers ``readers.i`` read these channels of the stem, and prove."""
    program = trace(module, torch.zeros(1, 3, size, size))
    opened = open_inputs(program, analyze(program), everywhere=not paying)
    keep = np.ones(int(opened.deps.class_of.max()) + 1, dtype=np.bool_)
    for site in opened.sites:
        (cut,) = site.cuts
        inner = opened.deps.class_of[opened.deps.cuts[cut].atoms]
        keep[inner] = np.isin(np.arange(16), list(wanted[int(site.layer.rpartition(".")[2])]))
    keep &= ~Subsets.of(opened).unread(keep)
    kept = Unconstrained(opened, paying).settle(keep)
    tensors, indices = slice_tensors(opened.program, kept)
    result = PassResult(rewrite(opened.program, tensors, kept), changed=True, plan=slicing_plan(kept, indices))
    assert prove(program, result.program.module, plan_of(result)).holds
    return result


def test_every_reader_keeps_what_it_wants_and_what_nobody_wants_goes() -> None:
    wanted = [range(8), range(4, 12), range(2, 16, 2)]
    result = reading(Readers(3), *wanted)
    assert widths(result)["stem"] == 14  # 13 and 15 are wanted by nobody
    assert [sorted(kept(result, f"readers.{i}")) for i in range(3)] == [list(channels) for channels in wanted]


def test_two_readers_read_slices_and_the_third_gathers() -> None:
    result = reading(Readers(3), range(1, 16, 2), [3, 7, 11, 0, 2], [0, 3, 5, 6, 12])
    assert calls(result.program) == {"narrow": 2, "index_select": 1, "cat": 0}


def test_nested_wishes_are_slices_all() -> None:
    result = reading(Readers(4), range(16), range(0, 16, 2), range(0, 16, 4), range(0, 16, 8))
    assert calls(result.program) == {"narrow": 3, "index_select": 0, "cat": 0}


def test_a_reader_reads_everything_where_a_copy_takes_longer() -> None:
    result = reading(Readers(3), range(1, 16), range(0, 15), [0, *range(2, 16)], paying=True, size=64)
    assert calls(result.program)["index_select"] == 0
    assert calls(result.program)["narrow"] < 3
    assert widths(result)["stem"] == 16


def test_a_reader_with_few_outputs_is_not_cut() -> None:
    program = trace(Readers(2, outputs=1), torch.zeros(1, 3, 8, 8))
    deps = analyze(program)
    assert len(open_inputs(program, deps, everywhere=True).sites) == 2
    assert not open_inputs(program, deps, everywhere=False).sites


def test_cuts_that_remove_nothing_leave_no_trace() -> None:
    program = trace(Readers(2), torch.zeros(1, 3, 8, 8))
    opened = open_inputs(program, analyze(program), everywhere=True)
    kept = Unconstrained(opened, paying=False).settle(np.ones(int(opened.deps.class_of.max()) + 1, dtype=np.bool_))
    tensors, _ = slice_tensors(opened.program, kept)
    assert not tensors
    result = rewrite(opened.program, tensors, kept)
    assert [n.name for n in result.graph.nodes] == [n.name for n in program.graph.nodes]


class Dense(nn.Module):
    """Two layers that read all that came before them, through a batch norm of their own, as in DenseNet."""

    def __init__(self, growth: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [growth * (i + 2) for i in range(3)]
        self.stem = nn.Conv2d(3, 2 * growth, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            found.append(conv(norm(torch.cat(found, 1)).relu()))
        return torch.cat(found, 1).mean((2, 3))


def test_cuts_stand_in_front_of_norms_and_concatenations() -> None:
    result = selected(lively(Dense()), ratio=0.4, criterion="l2", normalize="auto")
    kinds = [(n.op, str(n.target).rpartition(".")[2]) for n in result.program.graph.nodes]
    assert ("call_function", "narrow") not in kinds[-2:]
    for node in result.program.graph.nodes:
        if getattr(node.target, "__name__", "") in ("narrow", "index_select"):
            (reader,) = node.users
            assert reader.target is torch.cat or str(reader.target).startswith("norms.")
    for index in range(3):
        norm, conv = (result.program.owner(f"{kind}.{index}") for kind in ("norms", "convs"))
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(conv, nn.Conv2d)
        assert norm.num_features == conv.in_channels < 16 + 8 * index


class Slimming(nn.Module):
    """A pre-activation block: its norm feeds one layer only, and the trunk others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.conv(self.norm(x).relu())


def test_network_slimming_selects_by_the_scale_of_the_norm_behind_the_trunk() -> None:
    net = Slimming()
    lively(net)
    with torch.no_grad():
        net.norm.weight.copy_(torch.arange(1, 17) * torch.tensor([1.0, -1.0]).repeat(8))
    result = selected(net, criterion="bn-scale", macs=0.7, include=("norm",))
    channels = kept(result, "conv")
    assert 1 < len(channels) < 16
    assert channels == list(range(16 - len(channels), 16))
    assert plan_of(result).kept["norm.weight"][0] == channels
    assert widths(result)["stem"] == 16  # the trunk is the model's output


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_zoo_is_selected_from_exactly(name: str) -> None:
    for options in ({"criterion": "l2"}, {"criterion": "random", "seed": 1}):
        try:
            prune(program_of(name), ratio=0.5, scope="global", select="all", **options)
        except BudgetError:
            assert name in ZOO  # what is pinned may leave too little to go


@pytest.mark.parametrize("scope", ["global", "knapsack"])
@pytest.mark.parametrize("select", ["paying", "all"])
def test_budgets_hold_with_selection(scope: str, select: str) -> None:
    program = trace(lively(Dense(growth=32)), torch.zeros(1, 3, 32, 32))
    result, _ = prune(program, macs=0.7, scope=scope, select=select)
    assert 0.67 < measure(result.program).macs / measure(program).macs < 0.71


def test_what_is_pruned_with_selection_is_pruned_again() -> None:
    first = selected(lively(Dense()), ratio=0.3)
    again = trace(first.program.module, torch.zeros(1, 3, 8, 8))
    second, _ = prune(again, ratio=0.3, scope="global", select="all")
    assert measure(second.program).macs < measure(again).macs < measure(trace(Dense(), torch.zeros(1, 3, 8, 8))).macs


def test_layers_that_read_a_selection_are_refitted() -> None:
    net, data = lively(Dense()), [images(64, 3, 8, 8)]
    dense = trace(net, torch.zeros(1, 3, 8, 8))
    options: dict[str, Any] = {"macs": 0.6, "scope": "global", "select": "all", "criterion": "l1"}
    plain = PassPipeline([Prune(**options)]).run(dense).program
    refitted = PassPipeline([Prune(**options), Reconstruct(data=data)]).run(dense).program
    fresh = images(64, 3, 8, 8, seed=5)
    assert error(refitted, dense, fresh) < 0.7 * error(plain, dense, fresh)


def test_reconstruction_scores_say_what_each_reader_would_miss() -> None:
    net = Readers(2)
    first, second = (
        weight for name, weight in net.named_parameters() if name.endswith("weight") and "stem" not in name
    )
    with torch.no_grad():  # the readers want halves that do not overlap
        first[:, 8:] *= 1e-3
        second[:, :8] *= 1e-3
    options: dict[str, Any] = {"criterion": "reconstruction", "normalize": "auto", "data": [images(16, 3, 8, 8)]}
    result = selected(net, macs=0.525, **options)
    assert sorted(kept(result, "readers.0")) == list(range(8))
    assert sorted(kept(result, "readers.1")) == list(range(8, 16))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"macs": 0.5, "select": "all"}, "scope=uniform"),
        ({"macs": 0.5, "select": "all", "scope": "knapsack", "sensitivity": "x.csv"}, "sensitivity"),
        ({"layers": {"stem": 0.5}, "select": "paying"}, "scope=uniform"),
    ],
)
def test_selection_needs_a_scope_that_compares_layers(options: dict[str, Any], what: str) -> None:
    with pytest.raises(OptionError, match=f"select=.* has no use for {what}"):
        Prune(**options)
