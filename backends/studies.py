"""``sensitivity``, ``compare`` and ``scores`` of the command line: from their options to what is shown and drawn."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType

from . import compare, scores, sensitivity, study_tables
from .inputs import ModelInput
from .outputs import write
from .progress import Progress


@dataclass(frozen=True)
class Study:
    """What was found, in three forms."""

    content: dict[str, Any]
    """As JSON."""
    table: RenderableType
    plot: str
    """SVG."""


def run(arguments: Namespace, model: ModelInput, progress: Progress) -> Study:
    """Carry out the study that a command line asks for; see :mod:`.language` for its options.

    Raises:
        CompilerError: See :func:`.sensitivity.study` and :func:`.compare.study`.
    """
    if arguments.command == "scores":
        return _scores(arguments, model, progress)
    images: dict[str, Any] = {
        "data": arguments.data,
        "preprocess": arguments.preprocess,
        "limit": arguments.images,
        "labels": not arguments.no_labels,
        "threads": arguments.threads,
        "seed": arguments.seed,
        "progress": progress,
    }
    if arguments.command == "sensitivity":
        scan = sensitivity.study(
            model,
            arguments.output,
            name=arguments.model,
            ratios=arguments.ratios or sensitivity.RATIOS,
            criterion=arguments.criterion,
            behind=arguments.behind,
            retrain=arguments.retrain or 0,
            lr=arguments.lr,
            **images,
        )
        rows = [asdict(row) for row in scan.rows]
        return Study(
            {**scan.settings, "rows": rows, "notes": scan.notes},
            study_tables.sensitivities(scan),
            sensitivity.plot(scan),
        )
    criteria = arguments.criteria or ([] if arguments.pipeline else compare.CRITERIA)
    combined = compare.grid(criteria, arguments.scopes, arguments.macs, arguments.behind)
    found = compare.study(
        model,
        [*combined, *arguments.pipeline],
        name=arguments.model,
        calibration=arguments.calibration,
        file=arguments.output,
        **images,
    )
    return Study(found.to_json(), study_tables.comparison(found), compare.plot(found, arguments.model))


def _scores(arguments: Namespace, model: ModelInput, progress: Progress) -> Study:
    found = scores.study(
        model,
        arguments.criterion,
        data=arguments.data,
        preprocess=arguments.preprocess,
        limit=arguments.images,
        seed=arguments.seed,
        progress=progress,
    )
    write(arguments.output, scores.csv(found))
    content = {"model": arguments.model, "criterion": arguments.criterion, "groups": [r.to_json() for r in found]}
    return Study(content, study_tables.rankings(found), scores.plot(found, arguments.model, arguments.criterion))
