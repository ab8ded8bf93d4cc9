"""Criteria, scopes and whole pipelines side by side, on one model and one set of images.

Every pipeline compiles the same dense model; what comes out is measured on the same images. A pipeline that cannot be
carried out (a budget out of reach) is a row with its reason. No proofs are made: ``secateur compile`` makes them.
With a file, a comparison that was stopped goes on where it was, and candidates can be added to one that ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from ..compiler import examples
from ..compiler.capture import trace
from ..compiler.cost import measure
from ..compiler.errors import CompilerError, OptionError
from ..compiler.program import Program
from ..compiler.spec import PassSpec, PipelineSpec, parse
from ..passes.pipeline import PassPipeline
from .calibration import open_for
from .comparison import Comparison, Row, read, write
from .compile import equip
from .inputs import ModelInput
from .language import CALIBRATION_IMAGES
from .plots import Panel, Series, chart
from .quality import Judge, checksum, open_judged
from .standing import insist_on

CRITERIA: Final = ("l2", "fpgm", "taylor")
"""Compared by default."""
BUDGETS: Final = frozenset({"macs", "params", "bytes", "latency", "ratio"})
"""Options of prune that say how much stays: pipelines that differ in them alone are points of one line."""
_SAME: Final = 1e-5
"""Relative and absolute, of losses and entropies over the same images."""

Progress = Callable[[str], None]


def grid(criteria: Iterable[str], scopes: Iterable[str], macs: Iterable[float], behind: str = "") -> list[str]:
    """Return a pipeline for every combination.

    Args:
        criteria: See ``secateur list criteria``.
        scopes: ``uniform``, ``global``, ``knapsack``.
        macs: Fractions that stay.
        behind: Passes that run after each pruning.
    """
    after = f",{behind}" if behind.strip() else ""
    return [
        f"prune{{macs={fraction:g} criterion={criterion} scope={scope}}}{after}"
        for criterion, scope, fraction in product(criteria, scopes, macs)
    ]


def compare(
    program: Program,
    judge: Judge,
    pipelines: Sequence[str],
    *,
    data: Iterable[Any] | None = None,
    file: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda text: None,
) -> Comparison:
    """Run and measure every pipeline.

    Args:
        program: The dense model, the one that ``judge`` was made with.
        judge: Measures.
        pipelines: As text; each is run once.
        data: Calibration batches for criteria and passes that want some.
        file: CSV (see :mod:`.comparison`), written anew after every pipeline. What it holds already is not run again,
            unless it failed, and is part of what is returned.
        about: What else the file should record, and insist on when it is resumed: JSON.
        progress: Told which pipeline is running, and how many are left.

    Raises:
        PipelineSyntaxError: A pipeline cannot be read.
        OptionError: It names a pass, a criterion or an option that does not exist; there is no pipeline; or the file is
            of other settings.
    """
    passes = {text: PassPipeline.parse(text) for text in pipelines}  # all of them, before the first one runs
    if not passes:
        raise OptionError("there is nothing to compare", hint="--criteria l2,fpgm or --pipeline 'prune{macs=0.5}'")
    settings = {
        **(about or {}),
        "images": len(judge.images),
        "loss": "cross-entropy" if judge.labelled else "KL divergence from the dense model",
        "weights_sha256": checksum(program.tensors()),
        "dense": {**asdict(judge.dense), "entropy": judge.entropy},
    }
    path = None if file is None else Path(file).expanduser()
    rows = [] if path is None else _standing(path, settings)
    found = Comparison(judge.dense, len(judge.images), judge.labelled, tuple(sorted(rows, key=_rank)))
    known = {row.pipeline for row in rows}
    left = {text: pipeline for text, pipeline in passes.items() if text not in known}
    for number, (text, pipeline) in enumerate(left.items(), start=1):
        what = f"pipeline {number} of {len(left)}: {text}"
        progress(what)
        row = _row(program, judge, text, equip(pipeline, data, lambda text: None), what)
        found = replace(found, rows=tuple(sorted((*found.rows, row), key=_rank)))
        if path is not None:
            write(found.to_csv(settings), path)
    return found


def _standing(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    """Return what a file holds of pipelines that could be carried out.

    Raises:
        OptionError: It holds something else, or was measured with other settings or on other images.
    """
    if not path.exists():
        return []
    before, rows = read(path)
    insist_on(before, settings, str(path))
    # Images are told by what the dense model makes of them; its outputs depend a little on the number of threads.
    was, now = before["dense"], settings["dense"]
    if not all(math.isclose(was[key], now[key], rel_tol=_SAME, abs_tol=_SAME) for key in ("loss", "entropy")):
        raise OptionError(
            f"the file was measured on other images: the dense model's loss was {was['loss']:.6g} and is "
            f"{now['loss']:.6g}, the entropy of its answers {was['entropy']:.6g} and {now['entropy']:.6g}",
            where=str(path),
            hint="name another file",
        )
    return [row for row in rows if not row.reason]


def study(
    model: ModelInput,
    pipelines: Sequence[str],
    *,
    name: str = "",
    data: str,
    calibration: str | None = None,
    preprocess: str | None = None,
    limit: int | None = None,
    calibration_limit: int | None = CALIBRATION_IMAGES,
    labels: bool = True,
    threads: int = 2,
    seed: int = 0,
    file: str | Path | None = None,
    progress: Progress = lambda text: None,
) -> Comparison:
    """Open images, trace the model, and :func:`compare` on it.

    Args:
        model: What is pruned.
        pipelines: As text.
        name: What the file calls the model; by default as its class is called.
        data: Images to measure on: test images where an example has some.
        calibration: Images to calibrate on, training images where an example has some; by default as ``data``.
        preprocess: As text; by default what the model's weights ask for.
        limit: So many images to measure on, at most.
        calibration_limit: So many images to calibrate on, at most.
        labels: Whether to use the labels that the data have.
        threads: Of torch, while it measures.
        seed: Of the choice of images.
        file: CSV, resumed if it is there.
        progress: Told what is done.

    Raises:
        CompilerError: See :func:`compare` and :func:`.quality.open_judged`.
    """
    for text in pipelines:
        PassPipeline.parse(text)  # complains before images are read
    opened = open_judged(model, data, preprocess=preprocess, limit=limit, seed=seed, labels=labels)
    source = calibration or data
    batches = open_for(model, source, preprocess=preprocess, limit=calibration_limit, seed=seed)
    progress(f"tracing {model.class_name}")
    program = trace(model.module, model.example_inputs(), name=model.class_name)
    judge = Judge(program, opened.images, threads=threads, progress=progress)
    about = {
        "model": name or model.class_name,
        "inputs": [list(shape) for shape in model.shapes],
        "data": data,
        "preprocess": opened.preprocess,
        "unlabelled": opened.unlabelled,
        "calibration": source,
        "calibration_limit": calibration_limit,
        "seed": seed,
    }
    found = compare(program, judge, pipelines, data=batches, file=file, about=about, progress=progress)
    notes: list[str] = []
    if opened.unlabelled:
        notes.append(f"without labels ({opened.unlabelled}): compared with the dense model's own answers")
    if source == data and data not in examples.names():
        notes.append("what calibrates has seen the images that are measured on: --calibration DIR gives it others")
    return replace(found, notes=tuple(notes))


def _row(program: Program, judge: Judge, text: str, pipeline: PassPipeline, what: str) -> Row:
    start = perf_counter()
    empty = Row(_series(text), text)
    try:
        result = pipeline.run(program)
        seconds = perf_counter() - start
        quality = judge(result.program, what)
    except CompilerError as error:
        return replace(empty, reason=error.what)
    before, after = measure(program), measure(result.program)
    return replace(
        empty,
        macs=after.macs / max(before.macs, 1),
        params=after.params / max(before.params, 1),
        top1=quality.top1,
        loss=quality.loss,
        seconds=round(seconds, 3),
        notes=tuple(f"{remark.pass_name}: {remark.reason}" for remark in result.remarks if not remark.node),
    )


def _rank(row: Row) -> tuple[bool, float, float]:
    if row.top1 is None or row.loss is None:
        return True, 0.0, 0.0
    return False, -row.top1, row.loss


def _series(text: str) -> str:
    """Return a pipeline without its budgets."""

    def without(element: PassSpec) -> PassSpec:
        return PassSpec(element.name, tuple(option for option in element.options if option.key not in BUDGETS))

    return str(PipelineSpec(tuple(map(without, parse(text)))))


def plot(found: Comparison, model: str) -> str:
    """Return an SVG picture: accuracy and loss over MACs, a line per criterion and scope."""
    measured = [row for row in found.rows if row.macs is not None]
    names = list(dict.fromkeys(row.series for row in measured))

    def lines(name: str) -> tuple[Series, ...]:
        points = {
            series: sorted((row.macs or 0.0, float(getattr(row, name))) for row in measured if row.series == series)
            for series in names
        }
        return tuple(Series(_short(series, names), tuple(points[series])) for series in names)

    top1 = "top-1 accuracy, %" if found.labelled else "same top-1 as the dense model, %"
    loss = "cross-entropy, nats" if found.labelled else "KL divergence from the dense model, nats"
    panels = [Panel(top1, lines("top1"), found.dense.top1), Panel(loss, lines("loss"), found.dense.loss)]
    return chart(f"{model}: pruned in {len(found.rows)} ways", "fraction of the MACs that stayed", panels)


def _short(series: str, all_of_them: Sequence[str]) -> str:
    """Return what tells a series from the others: the options of prune, if all begin with prune and end alike."""
    parsed = [list(parse(text)) for text in all_of_them]
    if any(elements[0].name != "prune" or elements[1:] != parsed[0][1:] for elements in parsed):
        return series
    (first, *_) = parse(series)
    return " ".join(str(option.value or option.key) for option in first.options) or series
