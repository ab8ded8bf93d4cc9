"""What was kept: the record that lets anyone check a pruned model without secateur (plan.json, format 1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from .errors import InternalError

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
    lists for group norm, one per group, empty where the group went). A norm without parameters leaves no trace in
    ``kept``."""
    groups: tuple[PrunedGroup, ...] = ()

    def then(self, later: Plan, shapes: Mapping[str, Sequence[int]]) -> Plan:
        """Return the plan of pruning by this plan first and by ``later`` next, whose indices count what this one kept.

        Args:
            later: A plan of the program that this plan led to.
            shapes: Shapes of the original tensors by name. What is not among them (a gather's indices) is no original
                tensor, and is left out.
        """
        names = [name for name in (*self.kept, *later.kept) if name in shapes]
        kept = {
            name: _then_axes(name, self.kept.get(name, {}), later.kept.get(name, {}), shapes[name][0])
            for name in dict.fromkeys(names)
        }
        norms = dict(self.norms)
        for node, indices in later.norms.items():
            norms[node] = _then_norm(norms[node], indices, f"the normalisation {node}") if node in norms else indices
        return Plan(kept, norms, _then_groups(self.groups, later.groups))

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


def compose(plans: Iterable[Plan | None], shapes: Mapping[str, Sequence[int]]) -> Plan:
    """Return one plan for plans that were carried out one after the other, in terms of the original's tensors.

    Args:
        plans: In order; ``None`` for a step that removed nothing.
        shapes: Shapes of the original tensors by name.
    """
    joined: Plan | None = None
    for plan in plans:
        if plan is not None:
            joined = plan if joined is None else joined.then(plan, shapes)
    return joined or Plan()


def index_tensor(tensor: torch.Tensor, kept: Mapping[int, Kept]) -> torch.Tensor:
    """Return what a plan keeps of a tensor. Axis 1 may have a list per remaining group, whose rows stand together."""
    columns = kept.get(1, [])
    for axis, indices in kept.items():
        if not _is_nested(indices):
            tensor = tensor.index_select(axis, torch.tensor(indices, dtype=torch.int64))
    if not _is_nested(columns):
        return tensor
    lists = cast("list[list[int]]", columns)
    parts = zip(tensor.chunk(len(lists)), lists, strict=True)
    return torch.cat([part.index_select(1, torch.tensor(indices, dtype=torch.int64)) for part, indices in parts])


def _then_axes(name: str, first: Mapping[int, Kept], later: Mapping[int, Kept], rows: int) -> dict[int, Kept]:
    """Compose the axes of one tensor that has ``rows`` rows originally."""
    before = first.get(1)
    if before is not None and _is_nested(before) and 0 in later:
        # Rows stand group by group, so those that are left tell which of the groups are.
        rows_per_group = len(first.get(0, range(rows))) // len(before)
        groups = dict.fromkeys(row // rows_per_group for row in cast("list[int]", later[0]))
        first = {**first, 1: cast("list[list[int]]", [before[group] for group in groups])}
    axes = sorted({*first, *later})
    return {
        axis: _then(first[axis], later[axis], f"axis {axis} of {name}")
        if axis in first and axis in later
        else first.get(axis) or later[axis]
        for axis in axes
    }


def _then_norm(first: Kept, later: Kept, what: str) -> Kept:
    """Compose what is kept of a norm: where it has groups, the later list is about those that the first one left."""
    remaining = [inside for inside in first if isinstance(inside, list) and inside]
    if not remaining or len(remaining) == len(first):
        return _then(first, later, what)
    joined = iter(_then(remaining, later, what))
    return cast("list[list[int]]", [next(joined) if inside else [] for inside in first])


def _then(first: Kept, later: Kept, what: str) -> Kept:
    if not _is_nested(first) and not _is_nested(later):
        return [cast("list[int]", first)[index] for index in cast("list[int]", later)]
    if len(first) == 1 and not _is_nested(later):
        later = [cast("list[int]", later)]  # the one group that was left is an ordinary convolution by now
    if not _is_nested(first) or not _is_nested(later) or len(first) != len(later):
        raise InternalError(f"two plans for {what} cannot be joined: its groups differ")
    pairs = zip(cast("list[list[int]]", first), cast("list[list[int]]", later), strict=True)
    return [[inside[index] for index in indices] for inside, indices in pairs]


def _is_nested(kept: Kept) -> bool:
    return bool(kept) and isinstance(kept[0], list)


def _then_groups(first: Sequence[PrunedGroup], later: Sequence[PrunedGroup]) -> tuple[PrunedGroup, ...]:
    """Take the groups of the original, at the widths that they have in the end."""
    joined = [PrunedGroup(g.name, g.layers, g.before, _width_after(g, later)) for g in first]
    names, layers = {group.name for group in first}, {layer for group in first for layer in group.layers}
    return (*joined, *(g for g in later if g.name not in names and not layers.intersection(g.layers)))


def _width_after(group: PrunedGroup, later: Sequence[PrunedGroup]) -> int:
    """Return how wide a group is after a later pruning.

    Whole heads couple other layers than channels do, and are counted otherwise: then what has most lost counts.
    """
    same = next((g for g in later if g.name == group.name), None)
    if same is not None and same.before == group.after:
        return same.after
    left = [g.after / g.before for g in later if g.before and set(g.layers) & set(group.layers)]
    return round(group.after * min(left, default=1.0))
