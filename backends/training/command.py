"""``secateur train``, from a command line to what is to be shown."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ...compiler.errors import OptionError
from .. import artefact, catalog, engines, inputs
from ..head import with_outputs
from ..inputs import ModelInput
from ..language_train import changes_of, recipe_of
from ..progress import Progress
from ..verify import rebuild
from . import log
from .chain import Settings, run_experiment
from .data import open_data
from .loop import leave
from .methods.catalog import build
from .recipe import Recipe
from .run import prepare, train


def run(arguments: Namespace, progress: Progress) -> dict[str, Any] | None:
    """Train, and write the artefact.

    Returns:
        The content of report.json; ``None`` on all processes but the first.

    Raises:
        CompilerError: See :func:`.run.train`; also, an option has no use.
    """
    recipe, methods = recipe_of(arguments), build(arguments.method) if arguments.method else ()
    emit = catalog.check([name for name in arguments.emit.split(",") if name])
    for name in emit:
        if catalog.BACKENDS[name].engine:
            engines.get(catalog.BACKENDS[name].engine)  # complains now about what is not installed
    checkpoints = prepare(arguments.output, resume=arguments.resume, force=arguments.force)
    progress(f"loading {arguments.model}")
    model = inputs.load(arguments.model, weights=arguments.weights, shapes=arguments.input, seed=arguments.seed)
    if arguments.same_compute:
        recipe = _same_compute(recipe, arguments.model)
    teacher = _teacher(arguments, recipe, model)
    progress(f"reading {arguments.data}")
    data = open_data(
        model,
        arguments.data,
        val=arguments.val,
        preprocess=arguments.preprocess,
        limit=arguments.images,
        seed=arguments.seed,
    )
    if arguments.new_head:
        model = with_outputs(model, len(data.train.classes), seed=arguments.seed)
    progress(f"training on {len(data.train):,} images, testing on {len(data.test):,}")
    trained = train(
        model,
        data,
        recipe,
        methods=methods,
        teacher=teacher,
        seed=arguments.seed,
        scratch=arguments.from_scratch,
        accelerator=arguments.accelerator,
        devices=arguments.devices,
        checkpoints=checkpoints,
        asked={"teacher": arguments.teacher, "teacher_weights": arguments.teacher_weights},
        verify=not arguments.no_verify,
        progress=progress.tick,
        tell=lambda figures: progress.log(log.line(figures)),
    )
    report: dict[str, Any] | None = None
    if trained is not None:
        trained.save(arguments.output, emit=emit, force=arguments.force)
        checkpoints.clear()
        report = artefact.read_report(arguments.output)
    leave()
    return report


def experiment(arguments: Namespace, progress: Progress) -> dict[str, Any]:
    """Run an experiment, and return its results.

    Raises:
        CompilerError: See :func:`.chain.run_experiment`.
    """
    if not arguments.scale > 0:
        raise OptionError(f"scale is {arguments.scale:g}", where="--scale", hint="more than 0: 0.05 for a CPU")
    settings = Settings(
        data=arguments.data,
        output=arguments.output,
        val=arguments.val,
        preprocess=arguments.preprocess,
        weights=arguments.weights,
        images=arguments.images,
        scale=arguments.scale,
        least_epochs=arguments.least_epochs,
        changes=changes_of(arguments),
        later=arguments.later,
        seed=arguments.seed,
        accelerator=arguments.accelerator,
    )
    return run_experiment(arguments.name, settings, progress)


def _same_compute(recipe: Recipe, model: str) -> Recipe:
    """Return the recipe with as many epochs as cost what the artefact's original would: "scratch-B".

    Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, section 3.
    """
    folder = Path(model).expanduser()
    report = artefact.read_report(folder) if (folder / "report.json").is_file() else {}
    before, after = (report.get(key, {}).get("macs", 0) for key in ("before", "after"))
    if not before or not after:
        raise OptionError("only a pruned artefact tells what it lost", where="--same-compute", hint="give --epochs")
    return replace(recipe, epochs=max(1, round(recipe.epochs * before / after)))


def _teacher(arguments: Namespace, recipe: Recipe, model: ModelInput) -> nn.Module | None:
    if not recipe.distill:
        if arguments.teacher is not None:
            raise OptionError("a teacher has no share in the loss", where="--teacher", hint="--distill 0.5")
        return None
    if arguments.teacher is not None:
        return inputs.load(arguments.teacher, weights=arguments.teacher_weights, seed=arguments.seed).module
    source = model.spec.get("source") if model.spec.get("kind") == "artefact" else None
    if source is None:
        raise OptionError("nothing says who teaches", where="--distill", hint="--teacher MODEL --teacher-weights FILE")
    return rebuild(source, Path(str(model.spec["directory"])))
