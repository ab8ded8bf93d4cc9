"""``prune``: remove channels and rewrite the graph, so that what is left is a smaller dense model.

    y = W2 f(W1 x)   ->   y = W2[:, K] f(W1[K] x)      for the kept channels K of every coupled group

Which channels may go together is the analysis's answer (``compiler.analysis``); which of them go is a criterion's and a
budget's; the rest is slicing. The result equals the original in which the removed channels contribute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ...compiler.analysis import analyze
from ...compiler.collection import no_collection
from ...compiler.dependency import ChannelDependencies, ChannelGroup
from ...compiler.errors import OptionError
from ...compiler.program import Program
from ..base import Contract, Pass, PassResult, Remark, RemarkKind
from ..calibration import read
from ..slicing.plan import plan_of
from ..slicing.rewrite import rewrite
from ..slicing.tensors import KeptChannels, slice_tensors
from .cells import inseparable
from .criteria import criterion
from .criteria.base import Context, Scores
from .cuts import Opened, open_inputs
from .damage import Currency, Floats, damage_of
from .latency import Stopwatch
from .layers import check_patterns, format_layers, is_frozen, matches, parse_layers, ratio_for
from .scoring import normalized, score_classes
from .selection import Bools, Ints, Limits, Selection
from .sensitivity import damage_from
from .subsets import Subsets
from .unconstrained import Unconstrained
from .widths import LATENCY, Scope, Widths


@dataclass(frozen=True, eq=False)
class Chosen:
    """What is to stay."""

    wanted: Bools
    """[classes]: what was chosen."""
    kept: KeptChannels
    """What follows from it."""
    stats: dict[str, int | float]
    notes: list[Remark]


@dataclass(frozen=True)
class Prune(Pass):
    """Remove channels down to a budget: ``ratio``, ``params``, ``macs``, ``bytes``, ``latency`` or ``layers``."""

    name: ClassVar[str] = "prune"
    contract: ClassVar[Contract] = Contract.MASKED

    ratio: float | None = None
    """Fraction of the channels of every group (or, with scope=global, of all channels) that is removed."""
    params: float | None = None
    """Fraction of the parameters that is kept."""
    macs: float | None = None
    """Fraction of the multiply-accumulates that is kept."""
    bytes: float | None = None
    """Fraction of the bytes of the weights file that is kept."""
    latency: float | None = None
    """Fraction of the time per call that is kept, measured on ``engine`` after the passes that follow."""
    layers: Mapping[str, float] = field(
        default_factory=dict[str, float],
        metadata={"parse": parse_layers, "format": format_layers, "expected": "LAYER:FRACTION,..."},
    )
    """Fraction removed, layer by layer; everything else stays."""
    criterion: str = "l2"
    """How channels are scored: see ``secateur list criteria``."""
    aggregate: Literal["mean", "sum", "max", "product"] = "mean"
    """How the scores of everything that a channel touches become one."""
    normalize: Literal["auto", "group", "none", "isomorphic", "lamp"] = "auto"
    """What makes scores of different groups comparable, for scope=global: see ``scoring``. Auto is none for criteria
    that estimate the loss, which compares as it is, and else group."""
    scope: Scope = "uniform"
    """Whether all groups shrink alike, or the least important channels go wherever they are, or all widths are chosen
    at once so that they do the least damage within all budgets given (several, if need be)."""
    sensitivity: str | None = None
    """CSV file of ``secateur sensitivity``: the knapsack goes by what was measured there, group by group."""
    engine: str = "onnx"
    """What latency is measured on."""
    threads: int = 1
    """Of the engine."""
    batch: int = 1
    """Inputs per call, for latency."""
    round_to: int = 1
    """Kept widths are multiples of this, or untouched."""
    min_width: int = 1
    """No layer gets narrower than this (or than it was)."""
    max_ratio: float = 1.0
    """No group loses more than this fraction of its channels."""
    cells: Literal["shrink", "drop"] = "shrink"
    """What becomes of attention heads and of groups of convolutions and group norms: all of them keep as many of their
    channels, or whole ones go, and the others stay as they are inside."""
    select: Literal["none", "paying", "all"] = "none"
    """Whether layers may do without channels that others go on reading: where that saves more than a copy costs, or
    everywhere. For scope=global and scope=knapsack."""
    include: tuple[str, ...] = ()
    """Only layers that match are pruned."""
    exclude: tuple[str, ...] = ()
    """Layers that match keep their output channels."""
    seed: int = 0
    """Of criteria that draw numbers."""
    stopwatch: Callable[[str, int, int], Stopwatch] | None = field(
        default=None, compare=False, repr=False, metadata={"text": False}
    )
    """From engine, threads and batch size to something that measures them."""
    removed: tuple[int, ...] | None = field(default=None, compare=False, repr=False, metadata={"text": False})
    """Classes that go, in place of a choice."""
    data: Iterable[Any] | None = field(default=None, compare=False, metadata={"text": False})
    """Calibration batches for the criteria that need some: tensors, or tuples of the inputs and, last, the labels."""
    progress: Callable[[str], None] = field(
        default=lambda text: None, compare=False, repr=False, metadata={"text": False}
    )

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: No or several budgets, or a value out of range.
        """
        fractions = self._fractions()
        given = [*(["ratio"] if self.ratio is not None else []), *fractions, *(["layers"] if self.layers else [])]
        together = self.scope == "knapsack" and len(given) == len(fractions)
        if not given or (len(given) > 1 and not together):
            raise OptionError(
                f"prune needs exactly one budget, {' and '.join(given) or 'none'} given",
                hint="prune{macs=0.5}, prune{params=0.5}, prune{ratio=0.5} or prune{layers=conv1:0.5}; with "
                "scope=knapsack several of macs, params, bytes and latency",
            )
        if self.scope == "knapsack" and not together:
            raise OptionError(f"scope=knapsack has no use for {given[0]}", hint="give macs, params, bytes or latency")
        if self.sensitivity is not None and self.scope != "knapsack":
            raise OptionError(
                "sensitivity is for scope=knapsack", hint="prune{macs=0.5 scope=knapsack sensitivity=...}"
            )
        if self.select != "none" and (self.scope == "uniform" or self.sensitivity is not None):
            where = "sensitivity" if self.sensitivity is not None else "scope=uniform"
            raise OptionError(
                f"select={self.select} has no use for {where}", hint="scope=global or scope=knapsack, no sensitivity"
            )
        if self.cells == "drop" and self.sensitivity is not None:
            raise OptionError(
                "cells=drop has no use for sensitivity: it was measured with heads and groups that shrink",
                hint="leave one of them out",
            )
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise OptionError(f"ratio={self.ratio:g} is out of range", hint="fraction removed, 0 <= ratio < 1")
        for name, fraction in fractions.items():
            if not 0 < fraction <= 1:
                raise OptionError(f"{name}={fraction:g} is out of range", hint=f"fraction kept, 0 < {name} <= 1")
        for name, number in (
            ("round-to", self.round_to),
            ("min-width", self.min_width),
            ("threads", self.threads),
            ("batch", self.batch),
        ):
            if number < 1:
                raise OptionError(f"{name}={number} is out of range", hint=f"{name} is a whole number from 1 up")
        if not 0 < self.max_ratio <= 1:
            raise OptionError(
                f"max-ratio={self.max_ratio:g} is out of range", hint="fraction removed at most, 0 < max-ratio <= 1"
            )
        criterion(self.criterion)

    @property
    def calibrates(self) -> bool:
        """Whether the criterion needs calibration data."""
        return self.removed is None and criterion(self.criterion).needs_data

    @no_collection()
    def run(self, program: Program) -> PassResult:
        """Prune; see :class:`~..base.Pass`."""
        opened = Opened(program, analyze(program, whole_cells=self.cells == "drop"), ())
        if self.select != "none":
            opened = open_inputs(program, opened.deps, everywhere=self.select == "all")
        chosen = self.choose(opened)
        kept = chosen.kept
        tensors, indices = slice_tensors(opened.program, kept)
        remarks = (*_analysis_remarks(opened.deps), *inseparable(opened, self.name), *chosen.notes)
        plan = plan_of(kept, indices)
        # By the clock, until time is up, or by sums that are rounded otherwise elsewhere.
        decided = self.latency is not None or self.scope == "knapsack" or self.calibrates
        record = {"removed": np.flatnonzero(~chosen.wanted).tolist()} if decided else {}
        if not tensors:
            nothing = Remark(
                RemarkKind.MISSED, self.name, "", "nothing was pruned: no channel may go within the options"
            )
            told = (*remarks, nothing)
            return PassResult(program, changed=False, stats=chosen.stats, remarks=told, plan=plan, record=record)
        result = rewrite(opened.program, tensors, kept)
        return PassResult(result, changed=True, stats=chosen.stats, remarks=remarks, plan=plan, record=record)

    def choose(self, opened: Opened) -> Chosen:
        """Return the classes that stay."""
        deps = opened.deps
        check_patterns(self.include, deps, "include")
        check_patterns(self.exclude, deps, "exclude")
        check_patterns(tuple(self.layers), deps, "layers")
        limits = Limits(self.round_to, self.min_width, self.max_ratio)
        estimates_loss = criterion(self.criterion).estimates_loss
        normalize = self.normalize
        if normalize == "auto":
            normalize = "none" if estimates_loss else "group"
        subsets = Subsets.of(opened) if opened.sites else None
        unconstrained = Unconstrained(opened, paying=self.select == "paying")
        if self.removed is not None:
            wanted = np.ones(int(deps.class_of.max()) + 1, dtype=np.bool_)
            wanted[list(self.removed)] = False
            return _settled(unconstrained, wanted, {}, [])
        notes: list[Remark] = []

        def select(scores: Scores) -> Selection:
            return Selection(
                deps,
                scores,
                limits,
                lambda group: is_frozen(group, self.include, self.exclude),
                relative=normalize == "group",
                subsets=subsets,
                beyond=self.scope == "knapsack",
            )

        def choice(scores: Scores) -> Bools:
            trial = select(normalized(scores, deps, normalize))
            return trial.keep(self._levels(unconstrained, trial, [], {}))

        context = replace(self._context(opened.program, deps), choice=choice)
        scores = score_classes(context, self.criterion, normalize)
        if len(scores) > 1 and scores.min() == scores.max():
            alike = f"criterion '{self.criterion}' tells no channel from another: they go from the last to the first"
            notes.append(Remark(RemarkKind.MISSED, self.name, "", alike))
        if subsets is not None:
            scores = subsets.seen_from_the_front(scores, add=estimates_loss)
        selection = select(scores)
        stats: dict[str, int | float] = {}
        levels = self._levels(unconstrained, selection, notes, stats)
        return _settled(unconstrained, selection.keep(levels), stats, notes)

    def recall(self, record: Mapping[str, Any]) -> Prune:
        """Take what went from the record: nothing is scored, and no clock decides."""
        return replace(self, removed=tuple(record["removed"])) if "removed" in record else self

    def _context(self, program: Program, deps: ChannelDependencies) -> Context:
        """Return what the criterion may look at.

        Raises:
            OptionError: It needs calibration data, and there are none.
            SourceError: They are not what the model takes.
        """
        if self.calibrates and self.data is None:
            raise OptionError(
                f"criterion '{self.criterion}' scores channels by what they do on data, and none were given",
                hint="give calibration images: --data DIR (Python: compile(..., data=batches)); "
                "l1, l2, fpgm and bn-scale need none, nor does @data-free",
            )
        batches = read(self.data, program) if self.calibrates and self.data is not None else ()
        return Context(program, deps, batches, self.aggregate, self.seed, self.progress)

    def _levels(
        self,
        unconstrained: Unconstrained,
        selection: Selection,
        notes: list[Remark],
        stats: dict[str, int | float],
    ) -> Ints:
        """Return the block levels that the budget asks for."""
        program, deps = unconstrained.opened.program, unconstrained.opened.deps
        if self.layers:
            return self._by_layer(selection, notes)
        if self.ratio is not None and self.scope == "uniform":
            return selection.at_ratio(float(self.ratio))
        budgets = self._fractions() if self.ratio is None else {"channels": 1.0 - self.ratio}
        currency: Currency = "sum" if criterion(self.criterion).estimates_loss else "share"

        def damage() -> list[Floats]:
            if self.sensitivity is not None:
                return damage_from(Path(self.sensitivity), deps, selection)
            return damage_of(deps, selection, currency)

        search = Widths(
            program,
            deps,
            selection,
            self.scope,
            budgets,
            damage,
            lambda keep: program if keep.all() else _pruned(program, unconstrained.settle(keep)),
            self.stopwatch(self.engine, self.threads, self.batch) if self.stopwatch and self.latency else None,
            self.seed,
            self.progress,
            stats=stats,
            settle=lambda keep: unconstrained.settle(keep).classes if unconstrained.opened.sites else keep,
        )
        levels = search.levels()
        notes += [Remark(RemarkKind.NOTE, self.name, "", note) for note in search.notes]
        return levels

    def _fractions(self) -> dict[str, float]:
        """Return the fractions of costs that may stay."""
        costs = {"params": self.params, "macs": self.macs, "bytes": self.bytes, LATENCY: self.latency}
        return {name: float(fraction) for name, fraction in costs.items() if fraction is not None}

    def _by_layer(self, selection: Selection, notes: list[Remark]) -> Ints:
        ratios: dict[int, float] = {}
        for index, group in enumerate(selection.group_of):
            ratio = ratio_for(group, self.layers)
            if ratio is None:
                continue
            ratios[index] = ratio
            if len(selection.allowed[index]) < 2 and ratio > 0:
                cells = "none of its cells can go alone" if self.cells == "drop" else "its cells cannot shrink evenly"
                reason = group.pins[0].reason if group.pins else cells
                notes.append(Remark(RemarkKind.MISSED, self.name, group.name, f"stays as it is: {reason}"))
            others = [layer for layer in group.layers if not any(matches(p, layer) for p in self.layers)]
            if others:
                reason = f"{', '.join(others[:4])} shrink along: coupled"
                notes.append(Remark(RemarkKind.NOTE, self.name, group.name, reason))
        return selection.at_ratio(ratios)


def _settled(
    unconstrained: Unconstrained, wanted: Bools, stats: Mapping[str, int | float], notes: Sequence[Remark]
) -> Chosen:
    """Decide how what is wanted is read, and count."""
    deps, kept = unconstrained.opened.deps, unconstrained.settle(wanted)
    given = [group for group in deps.groups if group.name not in unconstrained.layer_of]
    before, gone = (sum(g.channels(mask) for g in given) for mask in (np.ones_like(wanted), ~kept.classes))
    stats = {"channels": before, **stats, "removed": gone}
    if unconstrained.opened.sites:
        stats |= {"slices": 0, "gathers": 0}
    told = list(notes)
    for layer, taken, offered, slices, gathers in unconstrained.report(kept):
        stats["slices"] += slices
        stats["gathers"] += gathers
        ways = [f"{n} {what}{'s' * (n > 1)}" for n, what in ((slices, "slice"), (gathers, "gather")) if n]
        text = f"reads {taken} of {offered} channels, by {' and '.join(ways)}"
        told.append(Remark(RemarkKind.NOTE, Prune.name, layer, text))
    return Chosen(wanted, kept, stats, told)


def _pruned(program: Program, kept: KeptChannels) -> Program:
    tensors, _ = slice_tensors(program, kept)
    return rewrite(program, tensors, kept) if tensors else program


def _analysis_remarks(deps: ChannelDependencies) -> list[Remark]:
    """Say of every group that cannot be pruned why."""
    return [_missed(group) for group in deps.groups if group.layers and group.prunable == 0 and group.pins]


def _missed(group: ChannelGroup) -> Remark:
    pin = group.pins[0]
    return Remark(RemarkKind.MISSED, Prune.name, group.name, f"stays whole: {pin.reason} (node {pin.node})")
