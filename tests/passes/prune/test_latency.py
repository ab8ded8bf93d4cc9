"""The latency model: from profiles back to the numbers that made them."""

import numpy as np
import pytest
import torch
from torch import nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.cost import layer_costs
from secateur.compiler.cost_model import CostModel
from secateur.compiler.program import Program
from secateur.passes.prune.latency import LatencyModel, Profile, learn
from secateur.passes.prune.prune import Prune
from secateur.passes.prune.selection import Bools, Limits, Selection
from secateur.passes.slicing.rewrite import rewrite
from secateur.passes.slicing.tensors import KeptChannels, slice_tensors


def up(channels: int, block: int) -> int:
    return -(-channels // block) * block


class Engine:
    """Whole blocks of 16 channels written and of 4 read; a little per channel, and a constant, besides."""

    conditions = "a computed engine"

    def profile(self, program: Program) -> Profile:
        costs = {c.layer: c for c in layer_costs(program)}
        layers = {
            name: 1e-9 * c.macs / c.outputs / c.inputs * up(c.outputs, 16) * up(c.inputs, 4)
            + 2e-8 * up(c.outputs, 16)
            + 3e-6
            for name, c in costs.items()
            if name != "head"
        }
        return Profile(layers, 5e-6)

    def compare(self, programs: object) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        raise AssertionError("learning compares nothing")


@pytest.fixture(scope="module")
def learnt() -> tuple[LatencyModel, CostModel, Selection, Program]:
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 64, 1)
    )
    program = trace(nn.Sequential(net, nn.Flatten(), nn.Linear(64 * 16, 5)).eval(), torch.zeros(1, 3, 4, 4))
    deps = analyze(program)
    selection = Selection(deps, np.ones(int(deps.class_of.max()) + 1), Limits(), lambda group: False)

    def prune(keep: Bools) -> Program:
        kept = KeptChannels(deps, keep)
        tensors, _ = slice_tensors(program, kept)
        return rewrite(program, tensors, kept) if tensors else program

    model = CostModel(program, deps)
    return learn(model, selection, prune, Engine()), model, selection, program


def test_the_blocks_are_found(learnt: tuple[LatencyModel, CostModel, Selection, Program]) -> None:
    assert learnt[0].blocks == (16, 4)
    assert learnt[0].error < 1e-6


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.55])
def test_networks_that_were_not_seen_are_predicted(
    learnt: tuple[LatencyModel, CostModel, Selection, Program], ratio: float
) -> None:
    latency, model, selection, program = learnt
    predicted = latency(model.counts(selection.keep(selection.at_ratio(ratio))))
    pruned = Prune(ratio=ratio, criterion="l1").run(program).program
    assert predicted == pytest.approx(Engine().profile(pruned).seconds, rel=1e-6)


def test_what_a_profile_does_not_name_counts_as_rest() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
    program = trace(net.eval(), torch.zeros(1, 3, 2, 2))
    deps = analyze(program)
    model = CostModel(program, deps)
    selection = Selection(deps, np.ones(int(deps.class_of.max()) + 1), Limits(), lambda group: False)

    class Silent(Engine):
        def profile(self, program: Program) -> Profile:
            return Profile({"somewhere": 2e-6}, 1e-6)

    latency = learn(model, selection, lambda keep: program, Silent())
    assert latency(model.counts(selection.keep(selection.full))) == pytest.approx(3e-6)
