"""What was kept: the record that lets anyone check a pruned model without secateur (plan.json, format 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Kept = list[int] | list[list[int]]
"""Original indices along one axis, in the order in which they now stand. Axis 1 of a grouped convolution: one list per
remaining group, indices within that group."""


@dataclass(frozen=True)
class PrunedGroup:
    """One group of coupled layers: how wide it was and how wide it is."""

    name: str
    layers: tuple[str, ...]
    before: int
    after: int


@dataclass(frozen=True)
class Plan:
    """Kept indices of every sliced tensor of the *original* model, by its original state_dict name."""

    kept: Mapping[str, Mapping[int, Kept]] = field(default_factory=dict[str, Mapping[int, Kept]])
    norms: Mapping[str, Kept] = field(default_factory=dict[str, Kept])
    """Graph node of a normalisation over pruned channels -> kept indices along the normalised channel axis (a list of
    lists for group norm, one per remaining group). A norm without parameters leaves no trace in ``kept``."""
    groups: tuple[PrunedGroup, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``plan.json``."""
        return {
            "format": 1,
            "kept": {name: {str(axis): list(idx) for axis, idx in axes.items()} for name, axes in self.kept.items()},
            "norms": {name: list(idx) for name, idx in self.norms.items()},
            "groups": [
                {"name": g.name, "layers": list(g.layers), "before": g.before, "after": g.after} for g in self.groups
            ],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """Read what :meth:`to_json` wrote."""
        return Plan(
            kept={name: {int(axis): idx for axis, idx in axes.items()} for name, axes in data["kept"].items()},
            norms=dict(data.get("norms", {})),
            groups=tuple(
                PrunedGroup(g["name"], tuple(g["layers"]), g["before"], g["after"]) for g in data.get("groups", [])
            ),
        )
