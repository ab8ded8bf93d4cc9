"""The plan of a removal: what is left of every tensor, norm and group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...compiler.plan import Kept, Plan, PrunedGroup
from .tensors import KeptChannels


def plan_of(kept: KeptChannels, indices: Mapping[str, Mapping[int, Kept]]) -> Plan:
    """Return the plan of keeping these channels.

    Args:
        kept: Which channels stay.
        indices: Kept indices per tensor and axis, as :func:`.tensors.slice_tensors` found them.
    """
    whole = np.ones_like(kept.classes)
    groups = tuple(
        PrunedGroup(g.name, g.layers, g.channels(whole), g.channels(kept.classes)) for g in kept.deps.groups if g.layers
    )
    return Plan(indices, _kept_norms(kept), groups)


def _kept_norms(kept: KeptChannels) -> dict[str, Kept]:
    found: dict[str, Kept] = {}
    for node, atoms in kept.deps.norms.items():
        mask = kept.mask(atoms)
        if kept.stays_put(atoms):
            continue
        rows = [np.flatnonzero(row).tolist() for row in mask] if mask.ndim == 2 else None
        found[node] = rows if rows is not None else kept.positions(atoms).tolist()
    return found
