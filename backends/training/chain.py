"""Runs an experiment: stage after stage, each an artefact in a folder of its own; finished ones are kept.

OUTPUT/dense/ OUTPUT/pruned/ OUTPUT/tuned/ ...    artefacts
OUTPUT/results.json, OUTPUT/results.md            what came of it
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...compiler.errors import OptionError
from ...compiler.options import nearest
from ...passes.pipeline import PassPipeline
from .. import artefact, inputs
from ..compile import Compiled, compile
from ..inputs import ModelInput
from ..progress import Progress
from . import log
from .data import Data, open_data
from .experiments import EXPERIMENTS, Compile, Experiment, Train
from .loop import make_fabric
from .methods.catalog import build
from .predictions import compare, masked_module, masked_original
from .recipe import Recipe
from .run import prepare, run_folder, train

COLUMNS = ("stage", "epochs", "parameters", "MACs", "file, KiB", "top-1 %", "mean of last 5", "predictions as masked")
SELF = "-"
"""Stands for the experiment's model."""


@dataclass(frozen=True)
class Settings:
    """What a user may choose."""

    data: str
    output: Path
    val: str | None = None
    preprocess: str | None = None
    weights: str | None = None
    """Of the model: then the first stage is not trained, but has these."""
    images: int | None = None
    scale: float = 1.0
    """By what the papers' epochs are multiplied."""
    least_epochs: int = 1
    """Of every stage that trains."""
    changes: Mapping[str, Any] | None = None
    """Other numbers for all recipes."""
    later: Mapping[str, Any] | None = None
    """The same for all stages but the first."""
    seed: int = 0
    accelerator: str = "auto"


def run_experiment(name: str, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Run what is not finished yet, and return the content of ``results.json``.

    Raises:
        OptionError: There is no such experiment, or the output holds another one.
        CompilerError: A stage fails; or masked and compact network do not predict the same.
    """
    if name not in EXPERIMENTS:
        raise OptionError(f"there is no experiment '{name}'", hint=nearest(name, EXPERIMENTS))
    experiment = EXPERIMENTS[name]
    _check_output(name, settings)
    rows: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    images = _Images(settings)
    for place, stage in enumerate(experiment.stages):
        folder = settings.output / stage.name
        if (folder / "report.json").is_file():
            progress.log(f"{stage.name}: finished before")
        else:
            progress.log(f"{stage.name}: {_told(stage, settings, first=place == 0)}")
            before = stage.of or (experiment.stages[place - 1].name if place else SELF)
            _run_stage(experiment, stage, before, place == 0, images, progress)
        report = artefact.read_report(folder)
        rows.append(_row(stage.name, report))
        results = _results(name, experiment, settings, rows)
        _write(settings.output, results)
    return results


def _check_output(name: str, settings: Settings) -> None:
    file = settings.output / "results.json"
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        asked = _asked(name, settings)
        if known["asked"] != asked:
            raise OptionError(
                "another experiment, or the same with other settings, stands there",
                where=str(settings.output),
                hint="give another -o, or the same settings to continue",
            )
    settings.output.mkdir(parents=True, exist_ok=True)


def _asked(name: str, settings: Settings) -> dict[str, Any]:
    return {
        "experiment": name,
        "data": settings.data,
        "val": settings.val,
        "preprocess": settings.preprocess,
        "weights": settings.weights,
        "images": settings.images,
        "scale": settings.scale,
        "least_epochs": settings.least_epochs,
        "changes": _plain(settings.changes),
        "later": _plain(settings.later),
        "seed": settings.seed,
    }


def _plain(changes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in (changes or {}).items()}


def _told(stage: Train | Compile, settings: Settings, *, first: bool) -> str:
    if isinstance(stage, Compile):
        return stage.pipeline
    return f"{recipe_of(stage, settings, first=first).epochs} epochs {stage.method}".strip()


def recipe_of(stage: Train, settings: Settings, *, first: bool = True) -> Recipe:
    """Return the recipe of a stage with the user's changes, its epochs scaled."""
    later = {} if first else settings.later or {}
    recipe = Recipe.from_json({**stage.recipe, **(settings.changes or {}), **later})
    return replace(recipe, epochs=max(settings.least_epochs, round(recipe.epochs * settings.scale)))


class _Images:
    """Opens the images once for all stages: their networks take the same."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._data: Data | None = None

    def of(self, model: ModelInput) -> Data:
        """Return the images as a network takes them."""
        if self._data is None:
            given = self.settings
            self._data = open_data(
                model, given.data, val=given.val, preprocess=given.preprocess, limit=given.images, seed=given.seed
            )
        return self._data


def _run_stage(
    experiment: Experiment, stage: Train | Compile, before: str, first: bool, images: _Images, progress: Progress
) -> None:
    settings = images.settings
    source = experiment.model if before == SELF else str(settings.output / before)
    weights = (settings.weights or "none") if before == SELF else None
    model = inputs.load(source, weights=weights, seed=settings.seed)
    data = images.of(model)
    folder = settings.output / stage.name
    if isinstance(stage, Compile) or (first and settings.weights is not None):
        pipeline = stage.pipeline if isinstance(stage, Compile) else ""
        _compile(model, data, pipeline, folder, settings, progress)
        return
    recipe = recipe_of(stage, settings, first=first)
    if stage.same_compute:
        report = artefact.read_report(Path(source))
        recipe = replace(recipe, epochs=round(recipe.epochs * report["before"]["macs"] / report["after"]["macs"]))
    checkpoints = prepare(folder, resume=run_folder(folder).exists(), force=False)
    trained = train(
        model,
        data,
        recipe,
        methods=build(stage.method) if stage.method else (),
        seed=settings.seed,
        scratch=stage.scratch,
        accelerator=settings.accelerator,
        checkpoints=checkpoints,
        progress=progress.tick,
        tell=lambda figures: progress.log(log.line(figures)),
    )
    assert trained is not None
    if trained.compiled.report["pipeline"]:
        _measure(trained.compiled, data, settings, progress, dense=model.module)
    trained.save(folder)
    checkpoints.clear()


def _compile(
    model: ModelInput, data: Data, pipeline: str, folder: Path, settings: Settings, progress: Progress
) -> None:
    passes = PassPipeline.parse(pipeline) if pipeline else PassPipeline(())
    compiled = compile(
        model.module,
        model.example_inputs(),
        pipeline=passes,
        seed=settings.seed,
        name=model.class_name,
        source=model.spec,
        progress=progress.tick,
    )
    _measure(compiled, data, settings, progress)
    compiled.save(folder)


def _measure(
    compiled: Compiled, data: Data, settings: Settings, progress: Progress, dense: torch.nn.Module | None = None
) -> None:
    """Note top-1, and that the masked network predicts the same for every test image; see :mod:`.predictions`.

    Args:
        compiled: Whose report is completed.
        data: To test on.
        settings: Say on what device.
        progress: Told what is being done.
        dense: The network with its masks, where training left them in; else the mask oracle stands for it.

    Raises:
        CompilerError: A prediction differs.
    """
    progress.tick("comparing predictions")
    device = make_fabric(Recipe(), accelerator=settings.accelerator).device
    masked = masked_module(dense) if dense is not None else masked_original(compiled.original, compiled.plan)
    compiled.report["predictions"] = compare(compiled.module, masked, data.test, device)


def _row(stage: str, report: Mapping[str, Any]) -> dict[str, Any]:
    training, predictions = report.get("training"), report.get("predictions")
    row = {"stage": stage, **{key: report["after"][key] for key in ("params", "macs", "bytes")}}
    row["same_as_masked"] = predictions["images"] if predictions and report["pipeline"] else None
    row["how"] = " ".join(training["methods"]) if training else report["pipeline"]
    if training:
        return {**row, **{key: training[key] for key in ("epochs", "top1", "best", "mean_of_last_5", "seed")}}
    return {**row, "top1": predictions["top1"] if predictions else None, "epochs": 0}


def _results(
    name: str, experiment: Experiment, settings: Settings, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "asked": _asked(name, settings),
        "model": experiment.model,
        "paper": experiment.paper,
        "stages": list(rows),
        "finished": len(rows) == len(experiment.stages),
    }


def _write(output: Path, results: Mapping[str, Any]) -> None:
    for file, text in (("results.json", json.dumps(results, indent=1) + "\n"), ("results.md", markdown(results))):
        partial = output / f"{file}.part"
        partial.write_text(text, encoding="utf-8")
        partial.replace(output / file)


def cells(row: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    """Return a stage's results as text, in the order of ``COLUMNS``; sizes also relative to the first stage's."""
    share = [f"{row[key]:,} ({row[key] / first[key]:.1%})" for key in ("params", "macs")]
    top1 = f"{row['top1']:.2f}" if row["top1"] is not None else "-"
    mean = f"{row['mean_of_last_5']:.2f}" if "mean_of_last_5" in row else "-"
    same = f"all {row['same_as_masked']:,}" if row["same_as_masked"] else "-"
    return [row["stage"], str(row["epochs"]), *share, f"{row['bytes'] / 1024:,.0f}", top1, mean, same]


def _pruned_by(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return by what each stage prunes, for those that do; nothing if none does."""
    return "; ".join(f"{row['stage']}: `{row['how']}`" for row in rows if row["how"])


def markdown(results: Mapping[str, Any]) -> str:
    """Return the results as a table."""
    first = results["stages"][0]
    how = _pruned_by(results["stages"])
    lines = [
        f"# {results['asked']['experiment']} ({results['model']})",
        "",
        f"Paper: {results['paper']}. Here: {results['asked']['data']}, epochs x {results['asked']['scale']:g}, "
        f"seed {results['asked']['seed']}.",
        "",
        *([f"{how}.", ""] if how else []),
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * (len(COLUMNS) - 1)}",
    ]
    for row in results["stages"]:
        lines.append(f"| {' | '.join(cells(row, first))} |")
    return "\n".join(lines) + "\n"
