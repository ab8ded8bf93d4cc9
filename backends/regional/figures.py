"""How much of the work of a model's regions is in layers that can be pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ...compiler.cost import layer_costs
from ...compiler.cost_model import CostModel, LayerProducts
from ...compiler.dependency import ChannelDependencies
from ...compiler.program import Program

_CONVOLUTIONS: Final = ("conv", "conv_transpose")


def prunable_share(program: Program, deps: ChannelDependencies) -> tuple[float, float]:
    """Return the shares of MACs, of all layers and of convolutions, of layers that read or give what may go."""
    model = CostModel(program, deps)
    keep = np.ones(int(deps.class_of.max(initial=-1)) + 1, dtype=np.bool_)
    full = model.counts(keep)
    for group in deps.groups:
        for block in group.blocks:
            if block.levels > 1:
                keep[block.classes[~block.pinned]] = False
    least = model.counts(keep)
    kinds = {cost.layer: cost.kind for cost in layer_costs(program)}
    convolutions = [layer for layer in model.layers if kinds.get(layer.name) in _CONVOLUTIONS]

    def share(layers: Sequence[LayerProducts]) -> float:
        macs = [(_macs(layer, full), _macs(layer, least)) for layer in layers]
        return sum(a for a, b in macs if b < a) / max(sum(a for a, _ in macs), 1.0)

    return share(model.layers), share(convolutions)


def _macs(layer: LayerProducts, counts: Any) -> float:
    return float((counts[layer.rows].prod(axis=1) * layer.coefficients).sum())
