"""Slice every tensor and count that the analysis declared: keep mask -> new modules and the plan. No per-operator code.

weight [O, I, k]        kept rows, then kept columns
weight [g a, b, k]      (groups, channels per group) along axis 1: every remaining group picks its own columns
attributes              a Count of what is kept
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...compiler.dependency import AttrUse, ChannelDependencies, Count, ParamSlice
from ...compiler.plan import Kept
from ...compiler.program import Program, is_persistent, place
from .order import Order

Bools = npt.NDArray[np.bool_]


class KeptChannels:
    """The keep mask over atoms, and what follows from it."""

    def __init__(self, deps: ChannelDependencies, keep: Bools, order: Order | None = None) -> None:
        """Take the choice.

        Args:
            deps: The analysis.
            keep: [classes].
            order: Where they are to stand; as they stand by default.
        """
        self.deps = deps
        self.classes = keep
        self.order = order
        self.atoms: Bools = keep[deps.class_of] if len(deps.class_of) else np.empty(0, dtype=np.bool_)

    def mask(self, atoms: npt.NDArray[np.int64]) -> Bools:
        """Return which of the positions stay."""
        return self.atoms[atoms]

    def positions(self, atoms: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the positions along an axis that stay, in the order in which they will stand."""
        mask = self.mask(atoms)
        if self.order is None:
            return np.flatnonzero(mask)
        arranged = self.order.arrange(self.deps.class_of[atoms])
        return arranged[mask[arranged]]

    def stays_put(self, atoms: npt.NDArray[np.int64]) -> bool:
        """Tell whether all of the positions stay where they are."""
        return self.whole(atoms) and (
            self.order is None or atoms.size != len(atoms) or bool((np.diff(self.positions(atoms.ravel())) > 0).all())
        )

    def count(self, count: Count) -> int:
        """Evaluate a count."""
        kept = self.atoms[count.cells]
        if count.widest:
            return int(kept.sum(axis=1).max(initial=0))
        return int(kept.any(axis=1).sum())

    def whole(self, atoms: npt.NDArray[np.int64]) -> bool:
        """Tell whether all of the positions stay."""
        return bool(self.atoms[atoms].all())


def slice_tensors(
    program: Program, kept: KeptChannels, changed: Mapping[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, Kept]]]:
    """Return the new tensors (only those that changed) and, per name and axis, the kept indices.

    Args:
        program: Owner of the tensors.
        kept: Which channels stay.
        changed: Tensors to take in place of the program's own, at full width; they may be new (a bias).
    """
    changed = changed or {}
    uses: dict[str, dict[int, ParamSlice]] = {}
    for use in kept.deps.slices:
        uses.setdefault(use.name, {}).setdefault(use.axis, use)
    made: dict[int, torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = dict(changed)
    plan: dict[str, dict[int, Kept]] = {}
    for name, axes in uses.items():
        cut = [use for use in axes.values() if not kept.stays_put(use.atoms)]
        if not cut:
            continue
        tensor: torch.Tensor = changed[name] if name in changed else program.attribute(name)
        plan[name] = _kept_indices(axes, cut, kept)
        if id(tensor) not in made:
            data = _slice(tensor.detach(), axes, cut, kept)
            is_param = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(data, requires_grad=tensor.requires_grad) if is_param else data
        tensors[name] = made[id(tensor)]
    return tensors, plan


def _groups(use: ParamSlice, kept: KeptChannels) -> list[int]:
    return np.flatnonzero(kept.mask(use.atoms).any(axis=1)).tolist()


def _kept_indices(axes: dict[int, ParamSlice], cut: Iterable[ParamSlice], kept: KeptChannels) -> dict[int, Kept]:
    found: dict[int, Kept] = {}
    for use in cut:
        mask = kept.mask(use.atoms)
        if use.atoms.ndim == 1:
            found[use.axis] = kept.positions(use.atoms).tolist()
        elif not mask[mask.any(axis=1)].all():  # something goes inside the remaining groups
            found[use.axis] = [np.flatnonzero(mask[g]).tolist() for g in _groups(use, kept)]
    return found


def _slice(
    tensor: torch.Tensor, axes: dict[int, ParamSlice], cut: Iterable[ParamSlice], kept: KeptChannels
) -> torch.Tensor:
    grouped = [use for use in cut if use.atoms.ndim == 2]
    for use in cut:
        if use.atoms.ndim == 1 and not (grouped and use.axis == 0):
            tensor = tensor.index_select(use.axis, torch.from_numpy(kept.positions(use.atoms)).to(tensor.device))
    for use in grouped:
        tensor = _slice_groups(tensor, axes[0], use, kept)
    return tensor.contiguous()


def _slice_groups(tensor: torch.Tensor, rows: ParamSlice, columns: ParamSlice, kept: KeptChannels) -> torch.Tensor:
    """[g a, b, ...] -> [g' a', b', ...]; the kept columns differ from group to group."""
    row_mask, column_mask = kept.mask(rows.atoms.ravel()), kept.mask(columns.atoms)
    groups: Bools = np.asarray(column_mask.any(axis=1))
    row_index = kept.positions(rows.atoms.ravel())
    inside = column_mask[groups]
    if inside.all():
        return tensor.index_select(0, torch.from_numpy(row_index).to(tensor.device))
    column_index = np.nonzero(inside)[1].reshape(len(inside), -1)  # [g', b']: balanced, so rectangular
    group_of_row = (np.cumsum(groups) - 1)[row_index * len(groups) // len(row_mask)]
    picked = column_index[group_of_row]
    return tensor[torch.from_numpy(row_index[:, None]).to(tensor.device), torch.from_numpy(picked).to(tensor.device)]


def rebuild_modules(program: Program, tensors: dict[str, torch.Tensor], kept: KeptChannels) -> nn.Module:
    """Return a module tree with the sliced tensors: changed leaves are new, the others are the program's own."""
    counted: dict[str, list[AttrUse]] = {}
    for use in kept.deps.attributes:
        counted.setdefault(use.owner, []).append(use)
    sliced: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        sliced.setdefault(owner, {})[leaf] = tensor
    root = nn.Module()
    root.training = program.root.training
    copies: dict[int, nn.Module] = {}
    for node in program.graph.nodes:
        path = str(node.target)
        if node.op == "call_module":
            module = program.owner(path)
            if id(module) not in copies:
                copies[id(module)] = _copy_leaf(module, sliced.get(path, {}), counted.get(path, []), kept)
            place(root, path, copies[id(module)])
        elif node.op == "get_attr":
            value = tensors.get(path, program.attribute(path))
            place(root, path, value, persistent=is_persistent(program.root, path))
    return root


def _copy_leaf(
    module: nn.Module, tensors: dict[str, torch.Tensor], counts: list[AttrUse], kept: KeptChannels
) -> nn.Module:
    changes = {(use.attribute, use.item): kept.count(use.count) for use in counts}
    if not tensors and all(_read(module, *where) == value for where, value in changes.items()):
        return module
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    for registry in ("_parameters", "_buffers", "_modules"):
        copy.__dict__[registry] = dict(module.__dict__[registry])
    for name, tensor in tensors.items():
        copy.__dict__["_parameters" if name in module._parameters else "_buffers"][name] = tensor
    for (attribute, item), value in changes.items():
        if item is None:
            setattr(copy, attribute, value)
        else:
            whole = list(getattr(copy, attribute))
            whole[item] = value
            setattr(copy, attribute, tuple(whole))
    return copy


def _read(module: nn.Module, attribute: str, item: int | None) -> Any:
    value = getattr(module, attribute)
    return value if item is None else value[item]
