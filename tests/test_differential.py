"""Every case of the zoo, pruned in several ways: compact(x) == masked(x), and what is left is a normal module."""

import copy
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.errors import BudgetError
from secateur.passes.prune.prune import Prune
from support.pruning import kept_part, leaves, loss_of, plan_of, program_of, prune
from support.zoo import ZOO

ALWAYS: list[dict[str, Any]] = [
    {"ratio": 0.3, "criterion": "random"},
    {"ratio": 0.4, "scope": "global", "criterion": "random", "seed": 3},
]
IN_TURN: list[dict[str, Any]] = [
    {"params": 0.6},
    {"macs": 0.7, "criterion": "l1"},
    {"ratio": 0.5, "round_to": 4},
    {"ratio": 0.9, "min_width": 3, "criterion": "bn-scale"},
]
every_case = pytest.mark.parametrize("name", ZOO)


@every_case
def test_the_captured_program_is_the_model(name: str) -> None:
    case = ZOO[name]
    module, inputs = case.module(), case.examples(batch=3)
    program = trace(module, case.examples())
    expected = leaves(module.eval()(*(x.clone() for x in inputs)))
    actual = leaves(program.module.eval()(*(x.clone() for x in inputs)))
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@every_case
def test_layers_are_free_or_pinned_with_a_reason(name: str) -> None:
    deps = analyze(program_of(name))
    for layer in ZOO[name].free:
        group = deps.group_of(layer)
        assert group is not None, f"{layer} is in no group"
        assert group.prunable > 0, f"{layer}: {[pin.reason for pin in group.pins]}"
    for layer, reason in ZOO[name].pinned.items():
        group = deps.group_of(layer)
        assert group is not None, f"{layer} is in no group"
        assert group.prunable == 0
        assert any(reason in pin.reason for pin in group.pins), [pin.reason for pin in group.pins]


@every_case
def test_half_of_it(name: str) -> None:
    """Exact, smaller, trainable, copyable, and prunable again."""
    case, program = ZOO[name], program_of(name)
    before = {key: value.clone() for key, value in program.module.state_dict().items()}
    result, proof = prune(program, ratio=0.5)
    assert not proof.vacuous
    assert result.changed or not case.free
    for key, value in program.module.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} of the original changed"
    module = copy.deepcopy(result.program.module)
    original_names = set(case.module().state_dict())
    assert {key for key in module.state_dict() if "gather_" not in key} <= original_names

    inputs = case.examples(batch=3)
    module.train()
    loss_of(module(*(x.clone() for x in inputs))).backward()
    frozen = {key for key, parameter in case.module().named_parameters() if not parameter.requires_grad}
    for key, parameter in module.named_parameters():
        assert parameter.requires_grad == (key not in frozen)
        assert (parameter.grad is not None) == parameter.requires_grad, key

    again = trace(result.program.module, case.examples())
    prune(again, ratio=0.4, criterion="random")


@every_case
def test_other_budgets_scopes_and_criteria(name: str) -> None:
    for options in [*ALWAYS, IN_TURN[list(ZOO).index(name) % len(IN_TURN)]]:
        with suppress(BudgetError):  # tiny as they are, not all can be halved
            prune(program_of(name), **options)


@every_case
def test_surviving_weights_stand_where_the_plan_says(name: str) -> None:
    """An oracle that knows no arithmetic: every parameter holds its own flat index."""
    module = ZOO[name].module()
    with torch.no_grad():
        for parameter in {id(p): p for p in module.parameters()}.values():
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter))
    program = trace(module, ZOO[name].examples())
    result = Prune(ratio=0.4, criterion="random", seed=5).run(program)
    kept = plan_of(result).kept
    compact = result.program.module.state_dict()
    original = module.state_dict()
    for key, value in compact.items():
        if "gather_" not in key:
            assert torch.equal(value, kept_part(original[key], dict(kept.get(key, {})))), key
    assert set(kept) <= set(compact)


@pytest.mark.parametrize("name", ["batch_norm", "functional_batch_norm", "instance_norm"])
def test_statistics_are_updated_in_training(name: str) -> None:
    module = copy.deepcopy(prune(program_of(name), ratio=0.5)[0].program.module)
    before = {key: value.clone() for key, value in module.named_buffers()}
    module.train()(*ZOO[name].examples())
    moved = {key for key, value in module.named_buffers() if not torch.equal(value, before[key])}
    assert {key for key in before if "mean" in key} <= moved


@pytest.mark.parametrize("name", ["dropout", "drop_of_paths"])
def test_dropout_follows_train_and_eval(name: str) -> None:
    module = prune(program_of(name), ratio=0.5)[0].program.module
    inputs = ZOO[name].examples(batch=8)
    module.train()
    assert not torch.equal(module(*inputs), module(*inputs))
    module.eval()
    assert torch.equal(module(*inputs), module(*inputs))


def test_tied_weights_stay_tied() -> None:
    module = prune(program_of("tied_weights"), ratio=0.5)[0].program.module
    assert module.get_submodule("a").weight is module.get_submodule("b").weight


def test_hooks_that_watch_survive() -> None:
    module = prune(program_of("watched"), ratio=0.5)[0].program.module
    assert module.get_submodule("mid")._forward_hooks
    assert not prune(program_of("hooked"), ratio=0.5)[0].program.module.get_submodule("mid")._forward_hooks


def test_a_pruned_module_is_an_ordinary_one() -> None:
    module = prune(program_of("plain"), ratio=0.5)[0].program.module
    stem = module.get_submodule("stem")
    assert isinstance(stem, nn.Conv2d)
    assert (stem.out_channels, tuple(stem.weight.shape)) == (4, (4, 3, 3, 3))
    exported = torch.export.export(copy.deepcopy(module).eval(), ZOO["plain"].examples())
    torch.testing.assert_close(exported.module()(*(x := ZOO["plain"].examples())), module.eval()(*x))
