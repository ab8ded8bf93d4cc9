"""How much the loss rises when one group of channels is narrowed and everything else stays: group by group.

Channels are scored once, on the dense model; then every group is narrowed by every ratio, alone, and what comes out is
measured. A row is ``prune{layers=LAYER:RATIO}`` and the passes behind it. Rows are appended to a CSV file as they
are measured (``passes.prune.sensitivity`` has the format), so that a scan that was stopped goes on where it was. With
``retrain``, every narrowed network is trained for some epochs before it is measured: what a layer costs in the end.

Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ..compiler.analysis import analyze
from ..compiler.capture import trace
from ..compiler.cost import measure
from ..compiler.dependency import ChannelDependencies, ChannelGroup
from ..compiler.errors import OptionError
from ..compiler.program import Program
from ..passes.base import RemarkKind
from ..passes.calibration import read as read_data
from ..passes.pipeline import PassPipeline
from ..passes.prune.criteria import criterion as find_criterion
from ..passes.prune.criteria.base import Context
from ..passes.prune.cuts import Opened
from ..passes.prune.prune import Chosen, Prune
from ..passes.prune.scoring import score_classes
from ..passes.prune.selection import Limits, Selection
from ..passes.prune.sensitivity import FORMAT, MARK, Row, Scan, complete_lines, header, parse
from ..passes.slicing.tensors import KeptChannels
from .compile import equip
from .inputs import ModelInput
from .plots import Panel, Series, chart
from .quality import Images, Judge, Quality, checksum, open_judged
from .standing import insist_on
from .training.retrain import LR, Retraining

RATIOS: Final = (0.1, 0.25, 0.5, 0.75)
COLOURED: Final = 12
"""Groups that a plot tells apart; the others are grey."""

Progress = Callable[[str], None]


def _silent(text: str) -> None:
    del text


def scan(
    program: Program,
    judge: Judge,
    file: str | Path,
    *,
    ratios: Sequence[float] = RATIOS,
    criterion: str = "l2",
    behind: str | PassPipeline = "",
    retrain: Retraining | None = None,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    progress: Progress = _silent,
) -> Scan:
    """Measure every group that can be pruned at every ratio.

    Args:
        program: The dense model, the one that ``judge`` was made with.
        judge: Measures; its images are also what criteria and passes calibrate on.
        file: CSV. What it holds already is not measured again, other ratios are added to it.
        ratios: Fractions of a group's channels to remove.
        criterion: Which channels go first.
        behind: Passes that run after each pruning, such as ``reestimate-bn``.
        retrain: How each network is trained then; its held-out images should be those of ``judge``.
        seed: Of criteria that draw numbers.
        about: What else the file should record, and insist on when it is resumed: JSON.
        progress: Told what is measured and how much is left.

    Returns:
        Everything that the file holds.

    Raises:
        OptionError: A ratio is out of range, nothing can be pruned, or the file is of other settings.
        CompilerError: A pass cannot run on the pruned program.
    """
    for ratio in ratios:
        if not 0 < ratio < 1:
            raise OptionError(f"the ratio {ratio:g} is out of range", hint="fractions removed, 0 < ratio < 1")
    passes = _passes(behind)
    batches = [images if labels is None else (images, labels) for images, labels in judge.batches]
    find = find_criterion(criterion)
    deps = analyze(program)
    settings = {
        "format": FORMAT,
        **(about or {}),
        "images": len(judge.images),
        "loss": "cross-entropy" if judge.labelled else "KL divergence from the dense model",
        "criterion": criterion,
        "behind": str(passes),
        **({"retrain": retrain.settings} if retrain is not None else {}),
        "seed": seed,
        "weights_sha256": checksum(program.tensors()),
        "images_sha256": judge.checksum(),
    }
    path = Path(file).expanduser()
    settings["dense"] = asdict(judge.dense)
    done = _standing(path, settings)
    progress(f"scoring channels by {criterion}")
    read = read_data(batches, program) if find.needs_data else ()
    scores = score_classes(Context(program, deps, read, seed=seed, progress=progress), criterion)
    selection = Selection(deps, scores, Limits(), lambda group: False)
    narrowing = _Narrowing(program, deps, selection, judge, passes, retrain, criterion, batches, progress)
    groups = narrowing.groups()
    if not groups:
        raise OptionError("no group of channels can be pruned", hint="secateur inspect MODEL says why")
    known = {(row.group, row.ratio): row for row in done.rows} if done is not None else {}
    wanted = [(group, ratio) for group in groups for ratio in sorted({float(ratio) for ratio in ratios})]
    left = [(group, ratio) for group, ratio in wanted if (group.name, ratio) not in known]
    _tidy(path, settings, new=done is None)
    with path.open("a", encoding="utf-8", newline="") as stream:
        for number, (group, ratio) in enumerate(left):
            what = f"{group.name} at {ratio:g}: {len(left) - number} of {len(wanted)} measurements left"
            progress(what)
            same = [row for row in known.values() if row.group == group.name]
            row = known[group.name, ratio] = narrowing.row(group, ratio, same, what)
            stream.write(row.line)
            stream.flush()
    notes = [f"{reason} (behind {', '.join(dict.fromkeys(who))})" for reason, who in narrowing.missed.items()]
    return Scan(settings if done is None else done.settings, tuple(known.values()), tuple(notes))


def study(
    model: ModelInput,
    file: str | Path,
    *,
    name: str,
    data: str,
    preprocess: str | None = None,
    limit: int | None = None,
    labels: bool = True,
    ratios: Sequence[float] = RATIOS,
    criterion: str = "l2",
    behind: str | PassPipeline = "",
    retrain: int = 0,
    lr: float = LR,
    threads: int = 2,
    seed: int = 0,
    progress: Progress = _silent,
) -> Scan:
    """Open images, trace the model, and :func:`scan` it.

    Images are training images where an example has some: what is found here decides about widths, and widths are not to
    be chosen on the images that accuracy is reported for.

    Args:
        model: What to measure.
        file: CSV.
        name: What the file calls the model.
        data: A folder with a folder per class, a plain folder (no labels), or an embedded example.
        preprocess: As text; by default what the model's weights ask for.
        limit: So many images at most; they are held in memory.
        labels: Whether to use the labels that the data have.
        ratios: See :func:`scan`, as for the others.
        criterion: Which channels go first.
        behind: Passes that run after each pruning.
        retrain: Epochs that each network is trained for before it is measured; images that it is not measured on are
            trained on, so that ``data`` may be anything that ``secateur train`` takes.
        lr: The learning rate of that.
        threads: Of torch, while it measures.
        seed: Of the choice of images, and of criteria that draw numbers.
        progress: Told what is done.

    Raises:
        CompilerError: See :func:`scan` and :func:`.quality.open_judged`.
    """
    retraining = None
    if retrain:
        if not labels:
            raise OptionError("networks cannot be retrained without labels", hint="leave out --no-labels, or --retrain")
        retraining = Retraining.of(model, data, retrain, lr=lr, preprocess=preprocess, measured=limit, seed=seed)
        opened = Images(retraining.measured(), str(retraining.data.test.preprocess), "")
    else:
        opened = open_judged(model, data, preprocess=preprocess, limit=limit, seed=seed, labels=labels, split="train")
    progress(f"tracing {model.class_name}")
    program = trace(model.module, model.example_inputs(), name=model.class_name)
    judge = Judge(program, opened.images, keep=True, threads=threads, progress=progress)
    about = {
        "model": name,
        "inputs": [list(shape) for shape in model.shapes],
        "data": data,
        "preprocess": opened.preprocess,
        "unlabelled": opened.unlabelled,
    }
    return scan(
        program,
        judge,
        file,
        ratios=ratios,
        criterion=criterion,
        behind=behind,
        retrain=retraining,
        seed=seed,
        about=about,
        progress=progress,
    )


def _passes(behind: str | PassPipeline) -> PassPipeline:
    if isinstance(behind, PassPipeline):
        return behind
    return PassPipeline.parse(behind) if behind.strip() else PassPipeline(())


@dataclass(frozen=True)
class _Narrow(Prune):
    """``prune{layers=...}`` with the choice made already: channels are not scored again for every row."""

    made: Chosen | None = field(default=None, compare=False, repr=False, metadata={"text": False})

    def choose(self, opened: Opened) -> Chosen:
        """Return the choice."""
        del opened
        assert self.made is not None
        return self.made


@dataclass(frozen=True, eq=False)
class _Narrowing:
    """One group narrowed, and measured."""

    program: Program
    deps: ChannelDependencies
    selection: Selection
    judge: Judge
    behind: PassPipeline
    retrain: Retraining | None
    criterion: str
    batches: Sequence[Any]
    progress: Progress
    missed: dict[str, list[str]] = field(default_factory=dict[str, "list[str]"])
    """What passes behind said they could not do at all -> behind which groups."""

    def groups(self) -> list[ChannelGroup]:
        """Return the groups that have a width besides their own."""
        free = {
            id(g) for g, levels in zip(self.selection.group_of, self.selection.allowed, strict=True) if len(levels) > 1
        }
        return [group for group in self.deps.groups if id(group) in free and group.layers]

    def row(self, group: ChannelGroup, ratio: float, others: Sequence[Row], what: str) -> Row:
        """Measure; ratios that come to a width that was measured already share its figures."""
        blocks = {index: ratio for index, owner in enumerate(self.selection.group_of) if owner is group}
        levels = self.selection.at_ratio(blocks)
        keep = self.selection.keep(levels)
        kept = int(keep[group.classes].sum())
        for row in others:
            if row.kept == kept:
                return replace(row, ratio=ratio)
        quality, params, macs = self.judge.dense, 1.0, 1.0
        if kept < group.width:
            chosen = Chosen(keep, KeptChannels(self.deps, keep), {}, [])
            quality, params, macs = self._measured(
                group, _Narrow(layers={group.layers[0]: ratio}, criterion=self.criterion, made=chosen), what
            )
        return Row(group.name, ratio, group.width, kept, params, macs, quality.top1, quality.loss)

    def _measured(self, group: ChannelGroup, narrow: _Narrow, what: str) -> tuple[Quality, float, float]:
        pipeline = equip(PassPipeline((narrow, *self.behind.passes)), self.batches, _silent)
        result = pipeline.run(self.program)
        for step in result.steps[1:]:
            for remark in step.remarks:
                if remark.kind is RemarkKind.MISSED and not remark.node:
                    self.missed.setdefault(f"{remark.pass_name}: {remark.reason}", []).append(group.name)
        before, after = measure(self.program), measure(result.steps[0].program)
        made = result.program
        if self.retrain is not None:
            made = self.retrain(made, lambda text: self.progress(f"{what}, {text}"))
        return self.judge(made, what), after.params / before.params, after.macs / max(before.macs, 1)


def _standing(path: Path, settings: Mapping[str, Any]) -> Scan | None:
    """Return what a file holds; ``None`` if there is none, or only the start of one that a killed run left.

    Raises:
        OptionError: It holds something else, or was measured with other settings.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = complete_lines(content)
    if whole.count(b"\n") < 2 and content[: len(MARK)] == MARK.encode()[: len(content)]:
        return None
    found = parse(whole, str(path))
    insist_on(found.settings, settings, str(path))
    return found


def _tidy(path: Path, settings: Mapping[str, Any], *, new: bool) -> None:
    """Leave a file ready for more rows: whole lines under the settings."""
    if new:
        path.write_text(header(settings), encoding="utf-8", newline="")
        return
    with path.open("r+b") as stream:
        stream.truncate(len(complete_lines(stream.read())))


def plot(found: Scan) -> str:
    """Return an SVG picture: accuracy and loss over the fraction removed, a line per group; colour for the worst."""
    groups = list(found.by_group().items())
    loss = str(found.settings.get("loss", "loss"))
    top1 = "top-1 accuracy, %" if loss == "cross-entropy" else "same top-1 as the dense model, %"
    panels = [
        Panel(label, tuple(_lines(groups, start, name)), start)
        for label, start, name in ((top1, found.dense_top1, "top1"), (loss + ", nats", found.dense_loss, "loss"))
    ]
    title = f"{found.settings.get('model', 'model')}: one group of channels narrowed at a time"
    return chart(title, "fraction of the group's channels removed", panels)


def _lines(groups: Sequence[tuple[str, tuple[Row, ...]]], start: float, name: str) -> Iterator[Series]:
    for place, (group, rows) in enumerate(groups):
        points = {0.0: start, **{1.0 - row.kept / row.width: float(getattr(row, name)) for row in rows}}
        yield Series(group, tuple(sorted(points.items())), muted=place >= COLOURED)
