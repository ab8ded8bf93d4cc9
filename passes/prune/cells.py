"""Heads and groups that were to go as wholes, and cannot go one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...compiler.explain import coupling
from ..base import Remark, RemarkKind
from .cuts import Opened


def inseparable(opened: Opened, name: str) -> Iterator[Remark]:
    """Say of groups of layers whose cells all live and die together what made them one.

    Args:
        opened: A program, analysed for whole cells or not; then there are none.
        name: Of the pass that says so.
    """
    deps = opened.deps
    said: set[str] = set()
    for cells in deps.cells:
        first = cells.atoms[:, 0]
        classes = deps.class_of[first]
        group = next((g for g in deps.groups if np.isin(classes[0], g.classes)), None)
        if len(first) < 2 or (classes != classes[0]).any() or group is None or group.name in said:
            continue
        if any(np.isin(classes[0], deps.class_of[pin.atoms]) for pin in group.pins):
            continue  # which is said already
        said.add(group.name)
        hops = coupling(deps, opened.program, int(first[0]), int(first[1]))
        other = next((hop for hop in hops if hop.node != cells.node), hops[0] if hops else None)
        why = f"{other.reason} (node {other.node})" if other else f"they share channels (node {cells.node})"
        reason = f"its {len(first)} cells stay, since none goes without the others: {why}"
        yield Remark(RemarkKind.MISSED, name, group.name, reason)
