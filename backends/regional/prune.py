"""Pruning models that are Python around networks, detectors above all: the networks shrink, the Python stays.

The traceable regions become one program (``compiler.regions``), which is pruned and proven like any other. Its layers
then take their places in a copy of the model, whose own code runs them. That this code does with them what the program
does is checked region by region, in float64. A region whose code does not go along, since it counts on the old widths,
or since channels have to be moved in it, runs its part of the program instead, or is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from torch import nn

from ...compiler.analysis import analyze
from ...compiler.cost import measure
from ...compiler.errors import CaptureError, CompilerError
from ...compiler.plan import Plan
from ...compiler.program import Program
from ...compiler.regions import Border, Regions, find_regions
from ...passes.instruments import Instrument
from ...passes.pipeline import PassPipeline, PipelineResult
from ..checks import Checked, check, compose, summary
from ..compile import DEFAULT_PIPELINE, equip
from .agreement import settle
from .figures import prunable_share
from .graph_code import GraphCode
from .write_back import check_glue, write_back


@dataclass(frozen=True)
class RegionsReport:
    """What was pruned of a model, and what was not."""

    pipeline: str
    regions: tuple[str, ...]
    rewritten: tuple[str, ...]
    """Those of the regions that run their part of the program, since their own code does not go along."""
    contracts: tuple[str, ...]
    borders: tuple[Border, ...]
    outside: dict[str, str]
    macs_before: int
    """Of all regions, per sample (an image)."""
    macs_after: int
    params_before: int
    params_after: int
    prunable: float
    """Share of the MACs before that are of layers which read or give channels that may go."""
    prunable_convolutions: float
    """The same for convolutions alone."""
    verification: dict[str, Any] | None
    """The proof of the program of all regions; ``None`` if it was not wanted."""
    agreement: float
    """The largest relative difference, in float64, between what the model's own code computes and the program."""
    plan: Plan
    notes: tuple[str, ...]
    timings: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-able data."""
        borders = [asdict(border) for border in self.borders]
        return {**vars(self), "borders": borders, "plan": self.plan.to_json()}


def prune_regions(
    model: nn.Module,
    inputs: Sequence[Any],
    pipeline: str | PassPipeline = DEFAULT_PIPELINE,
    *,
    training: Sequence[Any] | None = None,
    own_code: bool = False,
    verify: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[nn.Module, RegionsReport]:
    """Prune what of a model can be traced.

    Args:
        model: Any module; never changed.
        inputs: What it is called with, as a tuple: ``([image, image],)`` for a detector. How many boxes it finds tells
            how much the layers that run on boxes cost.
        pipeline: Passes as text or built; those that need data get none.
        training: What it is called with in training, ``(images, targets)``: shows what its code reads only there.
        own_code: Refuse where a region's code does not go along with what the passes did. Otherwise such a region runs
            its graph, as a subclass of its class.
        verify: Prove the program of all regions.
        seed: Of random inputs.
        progress: Told what is being done.

    Returns:
        A pruned copy of the model, of the same class, and what was done.

    Raises:
        CompilerError: Model, inputs and pipeline do not go together, or the model's own code counts on the old widths.
        ProofError: The program is not equal to its masked original: a bug of secateur.
    """
    passes = PassPipeline.parse(pipeline) if isinstance(pipeline, str) else pipeline
    pruned = prune_found(
        model, inputs, passes, training=training, own_code=own_code, verify=verify, seed=seed, progress=progress
    )
    return pruned.module, pruned.report


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned copy of a model, and how it came about."""

    module: nn.Module
    regions: Regions
    """Of the original."""
    result: PipelineResult
    checked: tuple[Checked, ...] | None
    rewritten: tuple[GraphCode, ...]
    report: RegionsReport


def prune_found(
    model: nn.Module,
    inputs: Sequence[Any],
    pipeline: PassPipeline,
    *,
    training: Sequence[Any] | None = None,
    own_code: bool = False,
    in_vain: bool = True,
    verify: bool = True,
    seed: int = 0,
    instruments: Sequence[Instrument] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> Pruned:
    """Prune what of a model can be traced; see :func:`prune_regions`.

    With ``in_vain=False`` a model is refused none of whose channels may go.
    """
    clock = _Clock(progress)
    passes = equip(pipeline, None, progress)
    with clock("finding regions", "regions"):
        regions = find_regions(model, *inputs, training=training)
    original = regions.program
    with clock("analysing", "analysis"):
        prunable = prunable_share(original, analyze(original))
        if not prunable[0] and not in_vain:
            raise CaptureError(f"no channel may go of what can be traced of {type(model).__name__}")
    with clock(f"running {passes}", "passes"):
        result = passes.run(original, instruments)
    checked: tuple[Checked, ...] | None = None
    if verify:
        with clock("proving", "prove"):
            checked = check_regions_program(original, result, seed, progress)
    with clock("checking the model's own code", "agreement"):
        pruned = write_back(model, original, result.program)
        agreement, rewritten = settle(pruned, regions, result.program, seed, own_code)
        check_glue(pruned, regions.call, inputs)
    before, after = measure(original), measure(result.program)
    report = RegionsReport(
        pipeline=str(passes),
        regions=tuple(dict.fromkeys(region.path for region in regions.regions)),
        rewritten=tuple(code.path for code in rewritten),
        contracts=regions.contracts,
        borders=regions.borders,
        outside=regions.outside,
        macs_before=before.macs,
        macs_after=after.macs,
        params_before=before.params,
        params_after=after.params,
        prunable=prunable[0],
        prunable_convolutions=prunable[1],
        verification=summary(checked) if checked is not None else None,
        agreement=agreement,
        plan=compose(original, result.steps),
        notes=original.notes,
        timings=clock.timings,
    )
    return Pruned(pruned, regions, result, checked, rewritten, report)


def check_regions_program(
    original: Program, result: PipelineResult, seed: int, progress: Callable[[str], None]
) -> tuple[Checked, ...]:
    """Prove the program of all regions.

    Raises:
        CompilerError: It does not run on another batch size.
        ProofError: It is not equal to its masked original.
    """
    try:
        return check(original, result.steps, result.program.module, seed=seed, progress=progress)
    except RuntimeError as error:  # of torch, about sizes
        given = ", ".join(f"{i.name} {list(i.shape)}" for i in original.inputs)
        raise CompilerError(
            f"the regions do not run on 2 and 3 samples of all that Python code gives them ({given}): {error}",
            hint="what does not follow the batch has to be made inside of a region; or skip the proof (verify=False)",
        ) from error


class _Clock:
    """Announces stages and times them."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.progress = progress
        self.timings: dict[str, float] = {}

    @contextmanager
    def __call__(self, text: str, stage: str) -> Generator[None]:
        self.progress(text)
        start = perf_counter()
        try:
            yield
        finally:
            self.timings[stage] = round(perf_counter() - start, 3)
