"""The proof fails when it has to: wrong plans, wrong slices, wrong order."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.capture import trace
from secateur.compiler.errors import ProofError
from secateur.compiler.oracle import MaskedOriginal
from secateur.compiler.plan import Plan
from secateur.compiler.proof import prove
from secateur.passes.prune.prune import Prune
from support.pruning import plan_of, program_of, prune


def pruned(name: str, **options: Any) -> tuple[nn.Module, Plan]:
    """A copy of the compact module, to be damaged, and the plan."""
    chosen: dict[str, Any] = {"ratio": 0.5, "criterion": "random", **options}
    result = Prune(**chosen).run(program_of(name))
    return copy.deepcopy(result.program.module), plan_of(result)


def change_kept(plan: Plan, name: str, axis: int, indices: Any) -> Plan:
    """The plan with one entry changed."""
    return replace(plan, kept={**plan.kept, name: {**plan.kept[name], axis: indices}})


def test_swapped_rows_are_caught() -> None:
    module, plan = pruned("residual")
    with torch.no_grad():
        weight = module.get_parameter("body.weight")
        weight[[0, 1]] = weight[[1, 0]]
    assert not prove(program_of("residual"), module, plan).holds


def test_swapped_columns_are_caught() -> None:
    module, plan = pruned("plain")
    with torch.no_grad():
        weight = module.get_parameter("head.weight")
        weight[:, [0, 1]] = weight[:, [1, 0]]
    assert not prove(program_of("plain"), module, plan).holds


def test_a_tiny_change_is_caught() -> None:
    module, plan = pruned("plain")
    with torch.no_grad():
        module.get_parameter("head.weight")[0, 0, 1, 1] += 1e-5
    assert not prove(program_of("plain"), module, plan).holds


def test_a_wrong_plan_is_caught() -> None:
    module, plan = pruned("plain")
    kept: Any = plan.kept["head.weight"][1]
    other = sorted({*range(8)} - set(kept))[0]
    wrong = change_kept(plan, "head.weight", 1, [*kept[:-1], other])
    assert not prove(program_of("plain"), module, wrong).holds


def test_a_shifted_gather_is_caught() -> None:
    module, plan = pruned("shuffle_by_views")
    gather = module.get_buffer("gather_0")
    gather.copy_(gather.roll(1))
    assert not prove(program_of("shuffle_by_views"), module, plan).holds


def test_columns_of_the_wrong_group_are_caught() -> None:
    module, plan = pruned("grouped_then_other_groups", seed=3)
    rows: Any = plan.kept["b.weight"][1]
    wrong = change_kept(plan, "b.weight", 1, [rows[1], rows[0], rows[2]])
    assert rows[0] != rows[1]
    assert not prove(program_of("grouped_then_other_groups"), module, wrong).holds


@pytest.mark.parametrize("name", ["group_norm", "layer_norm_channels_last", "convnext_block"])
def test_statistics_over_the_wrong_channels_are_caught(name: str) -> None:
    module, plan = pruned(name)
    wrong = replace(plan, norms={})
    assert prove(program_of(name), module, plan).holds
    assert not prove(program_of(name), module, wrong).holds


def test_the_wrong_groups_of_a_norm_are_caught() -> None:
    """A norm without weights, of which nothing but the plan of norms tells which groups remain."""
    module, plan = pruned("functional_group_norm", cells="drop")
    groups: dict[str, Any] = {node: list(kept) for node, kept in plan.norms.items()}
    node = next(node for node, kept in groups.items() if len(kept) == 4)
    assert sorted(map(len, groups[node])) == [0, 0, 3, 3]
    assert prove(program_of("functional_group_norm"), module, plan).holds
    wrong = replace(plan, norms={**groups, node: groups[node][::-1]})
    assert not prove(program_of("functional_group_norm"), module, wrong).holds


class Divided(nn.Module):
    """Removed channels are divided by zero: their own scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale = nn.Conv2d(3, 8, 3), nn.Parameter(torch.rand(8, 1, 1) + 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x) / self.scale)


def test_nothing_by_nothing_is_read_as_nothing() -> None:
    result, proof = prune(trace(Divided(), torch.zeros(2, 3, 8, 8)), ratio=0.5)
    assert not proof.vacuous
    nn.init.ones_(result.program.module.get_parameter("scale"))
    assert result.plan is not None
    assert not prove(trace(Divided(), torch.zeros(2, 3, 8, 8)), result.program.module, result.plan).holds


def test_a_bias_that_was_dropped_is_caught() -> None:
    module, plan = pruned("plain")
    nn.init.zeros_(module.get_parameter("stem.bias"))
    assert not prove(program_of("plain"), module, plan).holds


def test_running_statistics_in_the_wrong_order_are_caught() -> None:
    module, plan = pruned("batch_norm")
    mean = module.get_buffer("norm.running_mean")
    mean.copy_(mean.flip(0))
    assert not prove(program_of("batch_norm"), module, plan).holds


def test_an_output_of_another_shape_is_told() -> None:
    program = program_of("plain")
    with pytest.raises(ProofError, match="the compact model returns"):
        prove(program, nn.Conv2d(3, 5, 3, padding=1), Plan())


class Deaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.zeros_like(x))


def test_a_model_that_ignores_its_input_is_vacuous() -> None:
    program = trace(Deaf(), torch.zeros(2, 3, 8, 8))
    proof = prove(program, program.module, Plan())
    assert proof.holds
    assert proof.vacuous


def test_without_a_plan_the_oracle_is_the_original() -> None:
    program = program_of("squeeze_excitation")
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = copy.deepcopy(program.module).double().eval()(x)
    assert torch.equal(MaskedOriginal(program, Plan()).run(x), expected)


def test_the_masked_weight_is_zero_where_channels_went() -> None:
    program = program_of("plain")
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    by_hand = copy.deepcopy(program.module).double().eval()
    with torch.no_grad():
        by_hand.get_parameter("head.weight")[:, [0, 2, 5]] = 0.0
    plan = Plan({"head.weight": {1: [1, 3, 4, 6, 7]}})
    assert torch.equal(MaskedOriginal(program, plan).run(x), by_hand(x))


def test_a_failed_proof_is_an_error_with_numbers() -> None:
    module, plan = pruned("plain")
    nn.init.zeros_(module.get_parameter("stem.bias"))
    with pytest.raises(ProofError, match=r"differs from the masked original by .* \(tolerance 1e-09\)"):
        prove(program_of("plain"), module, plan).require()


def test_the_proof_reports_what_it_ran() -> None:
    _, proof = prune(program_of("plain"), ratio=0.5)
    told = proof.to_json()
    assert told["holds"] is True
    assert told["dtype"] == "float64"
    assert [trial["shapes"] for trial in told["trials"]] == [[[2, 3, 8, 8]], [[3, 3, 8, 8]]]


def test_the_proof_leaves_module_and_default_type_alone() -> None:
    module, plan = pruned("input_changed_in_place")
    module.train()
    assert prove(program_of("input_changed_in_place"), module, plan).holds
    assert module.training
    assert next(module.parameters()).dtype is torch.float32
    assert torch.get_default_dtype() is torch.float32
