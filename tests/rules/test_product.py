"""Products of activations: what is summed over is tied, head by head; the rest goes along."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.cost import measure
from secateur.compiler.cost_model import CostModel
from support.pruning import deps_of, group_of, program_of, prune, use_of, widths
from support.zoo import ZOO


def test_queries_and_keys_share_positions_and_values_are_free() -> None:
    deps = deps_of("self_attention")
    q, k, v = deps.class_of[use_of(deps, "qkv.weight").atoms].reshape(3, 3, 4)
    assert np.array_equal(q, k)
    assert not np.isin(v, q).any()
    assert len(np.unique(q)) == 12, "heads choose on their own"


def test_every_head_keeps_as_many() -> None:
    result, _ = prune(program_of("self_attention"), ratio=0.5, criterion="random")
    assert result.plan is not None
    rows = np.array(result.plan.kept["qkv.weight"][0])
    counts = np.bincount(rows // 4, minlength=9)
    assert counts[:3].tolist() == counts[3:6].tolist() == [2, 2, 2]
    assert counts[6:].tolist() == [2, 2, 2]
    assert (rows[:6] + 12).tolist() == rows[6:12].tolist()


@pytest.mark.parametrize("name", ["multihead_attention", "multihead_attention_with_dropout", "cross_attention"])
def test_the_width_of_attention_is_prunable_all_through(name: str) -> None:
    layers = widths(prune(program_of(name), ratio=0.5)[0])
    assert {layer: width for layer, width in layers.items() if layer in ("a", "b", "attn.out_proj")} == {
        layer: 6 for layer in ("a", "b", "attn.out_proj") if layer in layers
    }


def test_a_bias_by_position_keeps_its_heads() -> None:
    deps = deps_of("relative_positions")
    assert group_of(deps, "net.qkv").prunable > 0
    table = deps.class_of[use_of(deps, "net.table", 1).atoms]
    assert np.isin(table, np.concatenate([deps.class_of[pin.atoms] for pin in deps.pins])).all()


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x) @ y, torch.einsum("bij->bi", self.b(x))


def test_a_product_with_something_fixed_pins() -> None:
    program = trace(Fixed(), (torch.zeros(2, 3, 4), torch.zeros(2, 6, 5)))
    deps = analyze(program)
    assert "sums over them against something that is fixed" in group_of(deps, "a").pins[0].reason
    assert "sums over them against something that is fixed" in group_of(deps, "b").pins[0].reason
    prune(program, ratio=0.5)


@pytest.mark.parametrize("name", ["self_attention", "attention_by_einsum", "scaled_dot_product", "cosine_attention"])
def test_the_cost_model_counts_products(name: str) -> None:
    program = ZOO[name].program()
    deps = analyze(program)
    result, _ = prune(program, ratio=0.5)
    whole = np.ones(int(deps.class_of.max()) + 1, dtype=np.bool_)
    assert CostModel(program, deps)(whole).macs == measure(program).macs
    assert measure(result.program).macs < measure(program).macs


def test_attention_counts_both_of_its_products() -> None:
    program = program_of("scaled_dot_product")
    tokens, inside, values = 5, 8, 6
    linear = tokens * (12 * inside * 2 + 12 * values + values * 4)
    assert measure(program).macs == linear + tokens * tokens * (inside + values)
