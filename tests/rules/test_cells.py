"""Rows of channels that are cells of a product go as wholes; others go on as they are."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.dependency import ChannelDependencies
from secateur.passes.prune.prune import Prune
from support.heads import HEAD_CASES, HEADS, INSIDE, WIDTH, Attention, N
from support.pruning import deps_of, group_of, program_of, prune, use_of
from support.random_net import RandomNet
from support.zoo import ZOO

WITH_CELLS = (
    "attention group window position cosine convolutional dot_product three_dimensions activation_inside_a_shuffle"
).split()
FREE_OF_CELLS = [name for name in ZOO if not any(word in name for word in WITH_CELLS)]


def groups(deps: ChannelDependencies) -> list[tuple[Any, ...]]:
    return [
        (g.name, g.layers, g.width, g.prunable, [(len(b.cells), b.levels, b.units) for b in g.blocks], len(g.pins))
        for g in deps.groups
    ]


def whole(module: nn.Module, *shape: int) -> ChannelDependencies:
    return analyze(trace(module, torch.zeros(shape or (2, N, WIDTH))), whole_cells=True)


@pytest.mark.parametrize("name", FREE_OF_CELLS)
def test_without_cells_nothing_changes(name: str) -> None:
    """Assumptions on the way to a product that never comes are taken back."""
    found = analyze(program_of(name), whole_cells=True)
    assert not found.cells
    assert groups(found) == groups(deps_of(name))


@pytest.mark.parametrize("name", HEAD_CASES)
def test_the_channels_of_a_head_are_one_class(name: str) -> None:
    deps = analyze(HEAD_CASES[name].program(), whole_cells=True)
    for tensor, axes in HEAD_CASES[name].sliced.items():
        for axis, size in axes.items():
            classes, counts = np.unique(deps.class_of[use_of(deps, tensor, axis).atoms], return_counts=True)
            assert len(classes) == HEADS
            assert set(counts.tolist()) == {size}


def test_what_a_class_stands_for() -> None:
    """The channels of one head, in whatever tensor: not the three times as many rows of the projection."""
    group = group_of(whole(Attention()), "qkv")
    (block,) = group.blocks
    assert (group.width, block.levels, block.units) == (HEADS, HEADS, (INSIDE,))
    assert block.widths(np.array([1, 3])).tolist() == [5, 15]


class PatchExpand(nn.Module):
    """Swin-Unet: rows become pixels, and a norm and a layer act inside of each; heads come later."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Linear(6, 24), nn.LayerNorm(6)
        self.mix, self.attention = nn.Linear(6, WIDTH), Attention()

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        x = self.expand(x).view(b, h, w, 2, 2, 6).permute(0, 1, 3, 2, 4, 5).reshape(b, h * 2, w * 2, 6)
        return self.attention(self.mix(self.norm(x)).flatten(1, 2))


def test_rows_that_are_no_cells_of_a_product_are_none() -> None:
    program = trace(PatchExpand(), torch.zeros(2, 2, 2, 6))
    deps = analyze(program, whole_cells=True)
    assert group_of(deps, "expand").width == 6, "the four pixels of a patch have the same channels"
    assert group_of(deps, "attention.qkv").width == HEADS
    result, _ = prune(program, ratio=0.5, cells="drop")
    assert result.program.attribute("expand.weight").shape[0] == 12
    assert result.program.attribute("attention.qkv.weight").shape[0] == 2 * 3 * INSIDE


class NoHeads(nn.Module):
    """A non-local block: a product without rows."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, 8) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x))


def test_a_product_without_rows_has_no_cells() -> None:
    deps = whole(NoHeads())
    assert not deps.cells
    assert group_of(deps, "q").width == 8


def test_groups_of_a_norm_inside_of_those_of_a_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 1, groups=2), nn.GroupNorm(6, 24), nn.Conv2d(24, 2, 1))
    group = group_of(whole(net, 2, 3, 4, 4), "0")
    assert group.layers == ("0", "1")
    assert group.width == 2, "coarser cells count"
    assert group.blocks[0].units == (12,)


def test_the_analysis_of_shrinking_cells_is_the_default() -> None:
    deps = deps_of("self_attention")
    assert not deps.whole_cells
    assert not deps.cells
    assert not any(block.whole for group in deps.groups for block in group.blocks)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_keep_their_width_inside_of_groups(seed: int) -> None:
    """A grouped convolution in a random network has as many channels per group as before."""
    torch.manual_seed(seed)
    kinds = ["grouped", "group_norm", "conv", "relu", "add", "cat", "shuffle", "batch_norm", "gate"]
    draws = torch.randint(0, 12, (7, 4)).tolist()
    plan = [(kinds[a % len(kinds)], b, c, d) for a, b, c, d in [(0, 0, 0, 1), *map(tuple, draws)]]
    program = trace(RandomNet(plan), torch.zeros(2, 3, 6, 6))
    result, _ = prune(program, ratio=0.5, cells="drop", criterion="random", seed=seed)
    for node in program.graph.nodes:
        layer: Any = program.owner(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.in_channels > layer.groups < layer.out_channels:
            left: Any = result.program.owner(str(node.target))
            assert left.out_channels // left.groups == layer.out_channels // layer.groups
            assert left.in_channels // left.groups == layer.in_channels // layer.groups


def test_a_head_that_nothing_holds_back_is_free_for_every_criterion() -> None:
    program = HEAD_CASES["Fused"].program()
    for criterion in ("l1", "l2", "fpgm", "bn-scale", "random"):
        result = Prune(ratio=0.5, cells="drop", criterion=criterion).run(program)
        assert result.program.attribute("qkv.weight").shape[0] == 2 * 3 * INSIDE
