"""``prune``: remove channels and rewrite the graph, so that what is left is a smaller dense model.

    y = W2 f(W1 x)   ->   y = W2[:, K] f(W1[K] x)      for the kept channels K of every coupled group

Which channels may go together is the analysis's answer (``compiler.analysis``); which of them go is a criterion's and a
budget's; the rest is slicing. The result equals the original in which the removed channels contribute nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ...compiler.analysis import analyze
from ...compiler.collection import no_collection
from ...compiler.cost import CostModel
from ...compiler.dependency import ChannelDependencies, ChannelGroup
from ...compiler.errors import OptionError
from ...compiler.program import Program
from ..base import Contract, Pass, PassResult, Remark, RemarkKind
from ..slicing.plan import plan_of
from ..slicing.rewrite import rewrite
from ..slicing.tensors import KeptChannels, slice_tensors
from .budget import TOLERANCE, Budget, meet
from .criteria import criterion
from .layers import check_patterns, format_layers, is_frozen, matches, parse_layers, ratio_for
from .scoring import score_classes
from .selection import Ints, Limits, Selection

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Prune(Pass):
    """Remove channels down to a budget. Give exactly one of ``ratio``, ``params``, ``macs`` and ``layers``."""

    name: ClassVar[str] = "prune"
    contract: ClassVar[Contract] = Contract.MASKED

    ratio: float | None = None
    """Fraction of the channels of every group (or, with scope=global, of all channels) that is removed."""
    params: float | None = None
    """Fraction of the parameters that is kept."""
    macs: float | None = None
    """Fraction of the multiply-accumulates that is kept."""
    layers: Mapping[str, float] = field(
        default_factory=dict[str, float],
        metadata={"parse": parse_layers, "format": format_layers, "expected": "LAYER:FRACTION,..."},
    )
    """Fraction removed, layer by layer; everything else stays."""
    criterion: str = "l2"
    """How channels are scored: see ``secateur list criteria``."""
    scope: Literal["uniform", "global"] = "uniform"
    """Whether all groups shrink alike, or the least important channels go wherever they are."""
    round_to: int = 1
    """Kept widths are multiples of this, or untouched."""
    min_width: int = 1
    """No layer gets narrower than this (or than it was)."""
    include: tuple[str, ...] = ()
    """Only layers that match are pruned."""
    exclude: tuple[str, ...] = ()
    """Layers that match keep their output channels."""
    seed: int = 0
    """Of criteria that draw numbers."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: No or several budgets, or a value out of range.
        """
        budgets = {"ratio": self.ratio, "params": self.params, "macs": self.macs, "layers": self.layers or None}
        given = [name for name, value in budgets.items() if value is not None]
        if len(given) != 1:
            raise OptionError(
                f"prune needs exactly one budget, {' and '.join(given) or 'none'} given",
                hint="prune{macs=0.5}, prune{params=0.5}, prune{ratio=0.5} or prune{layers=conv1:0.5}",
            )
        for name, low_ok in (("ratio", True), ("params", False), ("macs", False)):
            value = budgets[name]
            if isinstance(value, float | int) and not (0 <= value < 1 if low_ok else 0 < value <= 1):
                meaning = "fraction removed, 0 <= ratio < 1" if low_ok else f"fraction kept, 0 < {name} <= 1"
                raise OptionError(f"{name}={value:g} is out of range", hint=meaning)
        for name, number in (("round-to", self.round_to), ("min-width", self.min_width)):
            if number < 1:
                raise OptionError(f"{name}={number} is out of range", hint=f"{name} is a whole number from 1 up")
        criterion(self.criterion)

    @no_collection()
    def run(self, program: Program) -> PassResult:
        """Prune; see :class:`~..base.Pass`."""
        deps = analyze(program)
        keep, stats, notes = self.choose(program, deps)
        kept = KeptChannels(deps, keep)
        tensors, indices = slice_tensors(program, kept)
        remarks = (*_analysis_remarks(deps), *notes)
        plan = plan_of(kept, indices)
        if not tensors:
            nothing = Remark(
                RemarkKind.MISSED, self.name, "", "nothing was pruned: no channel may go within the options"
            )
            return PassResult(program, changed=False, stats=stats, remarks=(*remarks, nothing), plan=plan)
        return PassResult(rewrite(program, tensors, kept), changed=True, stats=stats, remarks=remarks, plan=plan)

    def choose(self, program: Program, deps: ChannelDependencies) -> tuple[Bools, dict[str, int | float], list[Remark]]:
        """Return the classes that stay, figures about the choice, and remarks on it."""
        check_patterns(self.include, deps, "include")
        check_patterns(self.exclude, deps, "exclude")
        check_patterns(tuple(self.layers), deps, "layers")
        scores = score_classes(program, deps, self.criterion, self.seed)
        limits = Limits(self.round_to, self.min_width)
        selection = Selection(deps, scores, limits, lambda group: is_frozen(group, self.include, self.exclude))
        notes: list[Remark] = []
        keep = selection.keep(self._levels(program, deps, selection, notes))
        stats: dict[str, int | float] = {
            "channels": int(sum(g.width for g in deps.groups)),
            "removed": int((~keep).sum()),
        }
        return keep, stats, notes

    def _levels(self, program: Program, deps: ChannelDependencies, selection: Selection, notes: list[Remark]) -> Ints:
        """Return the block levels that the budget asks for."""
        if self.layers:
            return self._by_layer(selection, notes)
        if self.ratio is not None and self.scope == "uniform":
            return selection.at_ratio(float(self.ratio))
        cost = CostModel(program, deps)
        if self.ratio is not None:
            count = int(selection.keep(selection.full).sum())
            budget = Budget("channels", 1.0 - self.ratio, lambda keep: int(keep.sum()) - len(keep) + count)
        elif self.params is not None:
            budget = Budget("params", self.params, lambda keep: cost(keep)[0])
        else:
            budget = Budget("macs", float(self.macs or 1.0), lambda keep: cost(keep)[1])
        met = meet(budget, selection, self.scope)
        if abs(met.fraction - budget.fraction) > TOLERANCE:
            reason = f"{budget.name}={budget.fraction:g} was asked for; legal widths come as near as {met.fraction:.4f}"
            notes.append(Remark(RemarkKind.NOTE, self.name, "", reason))
        return met.levels

    def _by_layer(self, selection: Selection, notes: list[Remark]) -> Ints:
        ratios: dict[int, float] = {}
        for index, group in enumerate(selection.group_of):
            ratio = ratio_for(group, self.layers)
            if ratio is None:
                continue
            ratios[index] = ratio
            if len(selection.allowed[index]) < 2 and ratio > 0:
                reason = group.pins[0].reason if group.pins else "its cells cannot shrink evenly"
                notes.append(Remark(RemarkKind.MISSED, self.name, group.name, f"stays as it is: {reason}"))
            others = [layer for layer in group.layers if not any(matches(p, layer) for p in self.layers)]
            if others:
                reason = f"{', '.join(others[:4])} shrink along: coupled"
                notes.append(Remark(RemarkKind.NOTE, self.name, group.name, reason))
        return selection.at_ratio(ratios)


def _analysis_remarks(deps: ChannelDependencies) -> list[Remark]:
    """Say of every group that cannot be pruned why."""
    return [_missed(group) for group in deps.groups if group.layers and group.prunable == 0 and group.pins]


def _missed(group: ChannelGroup) -> Remark:
    pin = group.pins[0]
    return Remark(RemarkKind.MISSED, Prune.name, group.name, f"stays whole: {pin.reason} (node {pin.node})")
