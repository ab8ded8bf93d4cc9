"""``secateur scores``: how a criterion ranks the channels of every group, and how steeply their scores fall.

Where scores fall steeply, many channels hardly count; where all are alike, none is dispensable by this criterion. Li et
al., Pruning Filters for Efficient ConvNets, ICLR 2017, figure 2(a): the l1 norms of each layer's filters in falling
order, divided by the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..compiler.analysis import analyze
from ..compiler.errors import OptionError
from ..compiler.program import Program
from ..passes.calibration import read
from ..passes.prune.criteria import criterion as find_criterion
from ..passes.prune.criteria.base import Context
from ..passes.prune.scoring import score_classes
from . import front
from .calibration import open_for
from .inputs import ModelInput
from .plots import COLOURS, Panel, Series, chart
from .progress import Progress

HEADER: Final = "group,rank,channel,score,relative"
LOW: Final = 0.1
"""Of the largest score: what the table counts as low."""


@dataclass(frozen=True)
class Ranking:
    """The channels of one group, those with the highest scores first."""

    group: str
    layers: tuple[str, ...]
    channels: tuple[int, ...]
    """Places in the group, in the order in which its first layer has them."""
    scores: tuple[float, ...]

    @property
    def relative(self) -> tuple[float, ...]:
        """The scores, divided by the largest."""
        top = self.scores[0] or 1.0
        return tuple(score / top for score in self.scores)

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        return {"group": self.group, "layers": self.layers, "channels": self.channels, "scores": self.scores}


def rank(
    program: Program,
    criterion: str,
    *,
    batches: Iterable[Any] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[Ranking, ...]:
    """Rank the channels of every group that can be pruned.

    Args:
        program: A network.
        criterion: See ``secateur list criteria``.
        batches: For those that need data: tensors, or tuples of the inputs and, last, the labels.
        seed: Of criteria that draw numbers.
        progress: Told what is done.

    Raises:
        OptionError: There is no such criterion, it needs data, or nothing can be pruned.
    """
    needs_data = find_criterion(criterion).needs_data
    if needs_data and batches is None:
        raise OptionError(f"criterion '{criterion}' scores channels by what they do on data", hint="--data DIR")
    progress("analysing channel dependencies")
    deps = analyze(program)
    progress(f"scoring channels by {criterion}")
    given = read(batches, program) if needs_data and batches is not None else ()
    scores = score_classes(Context(program, deps, given, seed=seed, progress=progress), criterion, "none")
    found: list[Ranking] = []
    for group in deps.groups:
        if group.layers and group.prunable:
            mine = scores[group.classes]
            order = np.argsort(-mine, kind="stable")
            found.append(Ranking(group.name, group.layers, tuple(order.tolist()), tuple(mine[order].tolist())))
    if not found:
        raise OptionError("no group of channels can be pruned", hint="secateur inspect MODEL says why")
    return tuple(found)


def study(
    model: ModelInput,
    criterion: str,
    *,
    data: str | None = None,
    preprocess: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress,
) -> tuple[Ranking, ...]:
    """Open images if they are needed, trace the model, and :func:`rank` its channels.

    Raises:
        CompilerError: See :func:`rank` and :func:`.calibration.open_for`.
    """
    batches = open_for(model, data, preprocess=preprocess, limit=limit, seed=seed) if data is not None else None
    return rank(front.capture(model, seed, progress), criterion, batches=batches, seed=seed, progress=progress)


def csv(found: Iterable[Ranking]) -> str:
    """Return a row per channel."""
    lines = [HEADER]
    for ranking in found:
        entries = zip(ranking.channels, ranking.scores, ranking.relative, strict=True)
        lines += [f"{ranking.group},{n},{c},{s:.9g},{r:.6g}" for n, (c, s, r) in enumerate(entries, 1)]
    return "\n".join(lines) + "\n"


def steepest(found: Iterable[Ranking]) -> list[Ranking]:
    """Return the groups, those whose scores fall most steeply first."""
    return sorted(found, key=lambda ranking: float(np.mean(ranking.relative)))


def plot(found: Iterable[Ranking], title: str, criterion: str) -> str:
    """Return an SVG picture: falling scores over the share of channels, a line per group; colour for the steepest."""
    series = [
        Series(ranking.group, tuple((n / len(r), y) for n, y in enumerate(r, 1)), muted=place >= len(COLOURS))
        for place, ranking in enumerate(steepest(found))
        for r in [ranking.relative]
    ]
    panel = Panel(f"{criterion}, relative to the group's largest", tuple(series))
    return chart(f"{title}: scores of channels, group by group", "share of its channels, the best first", [panel])
