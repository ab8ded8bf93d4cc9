"""The cost model: what it says a choice costs is what the pruned program costs."""

import numpy as np
import pytest

from secateur.compiler.analysis import analyze
from secateur.compiler.cost import measure
from secateur.compiler.cost_model import CostModel, Products
from secateur.passes.prune.cuts import Opened
from secateur.passes.prune.prune import Prune
from support.pruning import program_of
from support.zoo import ZOO


def test_products_are_summed() -> None:
    products = Products(np.array([[0, 1], [1, 2]]), np.array([2.0, 10.0]), 3.0)
    assert products(np.array([4, 5, 1])) == 2 * 20 + 10 * 5 + 3


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_choice_costs_what_the_pruned_program_costs(name: str) -> None:
    program = program_of(name)
    deps = analyze(program)
    model = CostModel(program, deps)
    everything = np.ones(int(deps.class_of.max()) + 1 if len(deps.class_of) else 0, dtype=np.bool_)
    assert model(everything) == measure(program)
    pruned = Prune(ratio=0.5)
    chosen = pruned.choose(Opened(program, deps, ()))
    cost, made = model(chosen.kept.classes), measure(pruned.run(program).program)
    assert (cost.params, cost.macs) == (made.params, made.macs)
