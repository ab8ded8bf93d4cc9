"""Whole heads of torchvision's transformers."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from secateur.backends.artefact import load
from secateur.backends.compile import compile
from secateur.compiler.cost import measure
from support.pruning import plan_of, prune
from support.transformers import TRANSFORMERS, program_of

HEADS: dict[str, dict[str, tuple[int, int]]] = {
    "vit": {"encoder.layers.encoder_layer_0.self_attention.in_proj_weight": (4, 8)},
    "swin": {f"features.{i}.{j}.attn.qkv.weight": (2 * i - 2 or 2, 8) for i, j in ((1, 0), (1, 1), (3, 0), (3, 1))},
    "swin_v2": {f"features.{i}.{j}.attn.qkv.weight": (2 * i - 2 or 2, 8) for i, j in ((1, 0), (1, 1), (3, 0), (3, 1))},
    "maxvit": {
        f"blocks.{i}.layers.0.layers.{kind}_attention.attn_layer.1.to_qkv.weight": (2 * i + 2, 4)
        for i in (0, 1)
        for kind in ("window", "grid")
    },
    "mvit": {"blocks.0.attn.qkv.weight": (2, 8), "blocks.1.attn.qkv.weight": (4, 8)},
}
every_transformer = pytest.mark.parametrize("name", TRANSFORMERS)


@every_transformer
def test_half_of_the_heads(name: str) -> None:
    """Whole ones, the same of queries, keys and values; what is left of every other axis, too, proven."""
    result, proof = prune(program_of(name), ratio=0.5, cells="drop", criterion="random")
    assert not proof.vacuous
    kept = plan_of(result).kept
    for layer, (heads, inside) in HEADS[name].items():
        rows = np.array(kept[layer][0])
        counts = np.bincount(rows // inside, minlength=3 * heads).reshape(3, heads)
        assert set(counts.ravel().tolist()) == {0, inside}
        assert (counts == counts[0]).all()
        assert (counts[0] > 0).sum() == heads // 2


@pytest.mark.parametrize("name", ["swin", "swin_v2", "maxvit"])
def test_biases_by_position_go_with_their_heads(name: str) -> None:
    """A column of the table, a scale, and what the small network of Swin v2 gives for it."""
    kept = plan_of(prune(program_of(name), ratio=0.5, cells="drop", criterion="random")[0]).kept
    for layer, (heads, inside) in HEADS[name].items():
        chosen = sorted({row // inside % heads for row in kept[layer][0] if isinstance(row, int)})
        attention = layer.rpartition(".")[0].rpartition(".")[0]
        if name == "swin_v2":
            assert kept[f"{attention}.logit_scale"][0] == kept[f"{attention}.cpb_mlp.2.weight"][0] == chosen
        else:
            assert kept[f"{attention}.relative_position_bias_table"][1] == chosen


@every_transformer
@pytest.mark.parametrize("options", [{"scope": "global", "criterion": "random"}, {"scope": "knapsack"}])
def test_budgets(name: str, options: dict[str, Any]) -> None:
    program = program_of(name)
    result, _ = prune(program, macs=0.6, cells="drop", **options)
    assert measure(result.program).macs / measure(program).macs == pytest.approx(0.6, abs=0.03)
    for layer, (_, inside) in HEADS[name].items():
        assert result.program.attribute(layer).shape[0] % (3 * inside) == 0


def test_pools_of_heads_stay() -> None:
    result, _ = prune(program_of("mvit"), ratio=0.5, cells="drop")
    reasons = {r.node: r.reason for r in result.remarks}
    for pool in ("blocks.0.attn.pool_k.pool", "blocks.1.attn.pool_q.pool"):
        assert reasons[pool].startswith("stays whole: it stands inside of heads or groups, which go as wholes")


@every_transformer
def test_what_is_saved_comes_back(name: str, tmp_path: Any) -> None:
    """And runs for another batch size, and exports."""
    shape = TRANSFORMERS[name][1]
    compiled = compile(
        program_of(name).module, torch.zeros(shape), pipeline="prune{ratio=0.5 cells=drop}", verify=False
    )
    compiled.save(tmp_path / "out")
    loaded = load(tmp_path / "out").eval()
    x = torch.randn(3, *shape[1:])
    torch.testing.assert_close(loaded(x), compiled.module.eval()(x))
    exported = torch.export.export(copy.deepcopy(compiled.module), (torch.zeros(shape),)).module()
    torch.testing.assert_close(exported(x[:2]), compiled.module(x[:2]))
