"""Published architectures, tiny: captured, pruned with proof, trained, and free wherever one who knows them expects."""

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from secateur.backends.checks import check
from secateur.compiler.analysis import analyze
from secateur.compiler.cost import measure, weighted_calls
from secateur.compiler.errors import BudgetError
from secateur.compiler.program import Program
from secateur.compiler.shapes import shape_of
from secateur.passes.fold_bn import FoldBN
from secateur.passes.pipeline import PassPipeline
from secateur.passes.quantize.quantize import Quantize
from support.architectures import ARCHITECTURES
from support.pruning import leaves, loss_of, prune

NOTHING_GOES = ("TemporalConvNetNormed",)


every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


@cache
def program_of(name: str) -> Program:
    """The captured architecture; programs are never changed, so one is enough."""
    return ARCHITECTURES[name].program()


@every_architecture
def test_captured_as_it_is(name: str) -> None:
    case = ARCHITECTURES[name]
    inputs = case.examples(batch=3)
    expected = leaves(case.module().eval()(*(x.clone() for x in inputs)))
    actual = leaves(program_of(name).module.eval()(*(x.clone() for x in inputs)))
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def held(program: Program) -> Iterator[tuple[str, int, int, list[str]]]:
    """Yield every layer, the kinds of channels that it gives, how many of them stay, and why."""
    deps = analyze(program)
    for call, _ in weighted_calls(program):
        axis = len(shape_of(call.node)) - 1 if call.key == "linear" else 1
        factor = deps.labels_of(call.node).factor_at(axis)
        assert factor is not None
        classes = np.unique(deps.class_of[factor.atoms])
        pins = [(pin.reason, np.isin(classes, deps.class_of[pin.atoms])) for pin in deps.pins]
        stay = np.any([where for _, where in pins], axis=0)
        yield call.owner or call.node.name, len(classes), int(stay.sum()), [r for r, where in pins if where.any()]


@every_architecture
def test_what_stays_whole_and_why(name: str) -> None:
    """All layers may lose all channels but one, except for those that cannot, for the reason that is known."""
    whole = ARCHITECTURES[name].pinned
    met: set[str] = set()
    for layer, kinds, stay, reasons in held(program_of(name)):
        if layer in whole:
            met.add(layer)
            assert stay == kinds, layer
            assert any(whole[layer] in reason for reason in reasons), (layer, reasons)
        else:
            assert stay == 0, (layer, reasons)
            assert kinds > 1, f"{layer}: all or nothing"
    assert met == set(whole)


@every_architecture
def test_half_of_the_channels(name: str) -> None:
    """Exact, smaller, and every parameter learns."""
    result, proof = prune(program_of(name), ratio=0.5)
    assert not proof.vacuous
    assert result.changed == (name not in NOTHING_GOES)
    module = copy.deepcopy(result.program.module).train()
    loss_of(module(*ARCHITECTURES[name].examples(batch=3))).backward()
    frozen = {key for key, parameter in ARCHITECTURES[name].module().named_parameters() if not parameter.requires_grad}
    for key, parameter in module.named_parameters():
        assert parameter.requires_grad == (key not in frozen)
        assert (parameter.grad is not None) == parameter.requires_grad, key


BUDGETS: Mapping[str, Mapping[str, Any]] = {
    "uniform": {"macs": 0.6},
    "global": {"macs": 0.6, "scope": "global", "select": "all", "criterion": "random"},
}


@pytest.mark.parametrize("budget", BUDGETS)
@every_architecture
def test_part_of_the_macs(name: str, budget: str) -> None:
    program = program_of(name)
    if name in NOTHING_GOES:
        with pytest.raises(BudgetError, match=r"smallest legal widths keep 1\.000"):
            prune(program, **BUDGETS[budget])
        return
    result, proof = prune(program, **BUDGETS[budget])
    assert not proof.vacuous
    assert abs(measure(result.program).macs / measure(program).macs - 0.6) < 0.07


@every_architecture
def test_norms_are_folded_exactly_and_integers_run(name: str) -> None:
    program, case = program_of(name), ARCHITECTURES[name]
    folded = PassPipeline((FoldBN(),)).run(program)
    check(program, folded.steps, folded.program.module)
    result = Quantize(observer="minmax", data=[case.examples()]).run(folded.program)
    assert result.changed or result.stats == {"int8": 0}
    inputs = case.examples(batch=3)
    expected = leaves(program.module.eval()(*inputs))
    for mine, theirs in zip(leaves(result.program.module.eval()(*inputs)), expected, strict=True):
        assert mine.shape == theirs.shape
        assert mine.isfinite().all()
        assert (mine - theirs).square().mean() < 0.1 * theirs.square().mean()
