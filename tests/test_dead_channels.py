"""Dead channels go from every case of the zoo and from random networks, and what is left computes the same."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.compiler.capture import trace
from secateur.compiler.verifier import verify
from secateur.passes.eliminate_dead_channels import EliminateDeadChannels
from support.killing import difference, kill, killed_case, wide_examples
from support.random_net import RandomNet, Step, steps
from support.zoo import ZOO

EXACT = 1e-9
Border = Any


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("border", ["refuse", "merge"])
def test_every_case(name: str, border: Border) -> None:
    module = killed_case(name, 0.3, columns=border == "merge")
    program = trace(module, wide_examples(name))
    result = EliminateDeadChannels(border=border).run(program)
    verify(result.program)
    for batch in (2, 3):
        inputs = wide_examples(name, batch)
        assert difference(program.module, copy.deepcopy(result.program.module), *inputs) <= EXACT


def check_network(plan: list[Step], seed: int, fraction: float, border: Border) -> None:
    module = kill(RandomNet(plan), fraction, seed, columns=seed % 2 == 1, spare="head")
    program = trace(module, torch.zeros(2, 3, 6, 6, dtype=torch.float64))
    result = EliminateDeadChannels(border=border).run(program)
    verify(result.program)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 6, 6, dtype=torch.float64)
        assert difference(program.module, copy.deepcopy(result.program.module), x) <= EXACT
    again = EliminateDeadChannels(border=border).run(result.program)
    assert again.stats["removed"] <= result.stats["removed"]


networks = given(steps, st.integers(0, 9), st.sampled_from([0.2, 0.4, 0.8]), st.sampled_from(["refuse", "merge"]))


@settings(max_examples=40, derandomize=True, deadline=None)
@networks
def test_any_network(plan: list[Step], seed: int, fraction: float, border: str) -> None:
    check_network(plan, seed, fraction, border)


@pytest.mark.slow
@settings(max_examples=500, derandomize=True, deadline=None)
@networks
def test_any_network_at_length(plan: list[Step], seed: int, fraction: float, border: str) -> None:
    check_network(plan, seed, fraction, border)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(
    st.sets(st.integers(0, 11), min_size=1, max_size=11), st.lists(st.sampled_from(["relu", "pool", "flip", "roll"]))
)
def test_dead_channels_of_a_simple_network_all_go(dead: set[int], kinds: list[str]) -> None:
    module = RandomNet([(kind, number, 0, 0) for number, kind in enumerate(kinds)])
    with torch.no_grad():
        module.stem.weight[sorted(dead)] = 0.0
    program = trace(module.double().eval(), torch.zeros(2, 3, 6, 6, dtype=torch.float64))
    result = EliminateDeadChannels().run(program)
    assert result.stats["removed"] == len(dead)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert difference(program.module, copy.deepcopy(result.program.module), x) <= EXACT
