"""Pruning models that are Python around networks, detectors above all: the networks shrink, the Python stays.

The traceable regions become one program (``compiler.regions``), which is pruned and proven like any other. Its layers
then take their places in a copy of the model, whose own code runs them. That this code does with them what the program
does is checked region by region, in float64. A region whose code does not go along, since it counts on the old widths,
or since channels have to be moved in it, runs its part of the program instead, or is refused.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..compiler.analysis import analyze
from ..compiler.cost import layer_costs, measure
from ..compiler.cost_model import CostModel, LayerProducts
from ..compiler.dependency import ChannelDependencies
from ..compiler.errors import CaptureError, CompilerError
from ..compiler.plan import Plan
from ..compiler.program import InputSpec, Program
from ..compiler.proof import default_float64, in_float64
from ..compiler.recording import Call, record
from ..compiler.regions import Border, Region, Regions, find_regions
from ..passes.pipeline import PassPipeline, PipelineResult
from .checks import check, compose, summary
from .compile import DEFAULT_PIPELINE, equip
from .region_code import run_graph

_TOLERANCE: Final = 1e-9
_CONVOLUTIONS: Final = ("conv", "conv_transpose")


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
    clock = _Clock(progress)
    passes = equip(PassPipeline.parse(pipeline) if isinstance(pipeline, str) else pipeline, None, progress)
    with clock("finding regions", "regions"):
        regions = find_regions(model, *inputs, training=training)
    original = regions.program
    with clock("analysing", "analysis"):
        prunable = _prunable(original, analyze(original))
    with clock(f"running {passes}", "passes"):
        result = passes.run(original)
    verification: dict[str, Any] | None = None
    if verify:
        with clock("proving", "prove"):
            verification = _verified(original, result, seed, progress)
    with clock("checking the model's own code", "agreement"):
        pruned = write_back(model, original, result.program)
        agreement, rewritten = _settle(pruned, regions, result.program, seed, own_code)
        _check_glue(pruned, regions.call, inputs)
    before, after = measure(original), measure(result.program)
    report = RegionsReport(
        pipeline=str(passes),
        regions=tuple(dict.fromkeys(region.path for region in regions.regions)),
        rewritten=rewritten,
        contracts=regions.contracts,
        borders=regions.borders,
        outside=regions.outside,
        macs_before=before.macs,
        macs_after=after.macs,
        params_before=before.params,
        params_after=after.params,
        prunable=prunable[0],
        prunable_convolutions=prunable[1],
        verification=verification,
        agreement=agreement,
        plan=compose(original, result.steps),
        notes=original.notes,
        timings=clock.timings,
    )
    return pruned, report


def _verified(original: Program, result: PipelineResult, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    try:
        return summary(check(original, result.steps, result.program.module, seed=seed, progress=progress))
    except RuntimeError as error:  # of torch, about sizes
        given = ", ".join(f"{i.name} {list(i.shape)}" for i in original.inputs)
        raise CompilerError(
            f"the regions do not run on 2 and 3 samples of all that Python code gives them ({given}): {error}",
            hint="what does not follow the batch has to be made inside of a region; or skip the proof (verify=False)",
        ) from error


# Back into the model --------------------------------------------------------------------------------------------------


def write_back(model: nn.Module, original: Program, compact: Program) -> nn.Module:
    """Return a copy of the model in which the layers and tensors of a rewritten program stand in place of its own.

    Wherever the model holds them: under several names, in lists of its own.
    """
    copies: dict[int, Any] = {}
    replaced: dict[int, Any] = {}
    for old, new in (*_layers(original, compact), *_tensors(original, compact)):
        if new is not old:
            replaced[id(old)] = copy.deepcopy(new, copies)
    return copy.deepcopy(model, replaced)


def _layers(original: Program, compact: Program) -> Iterator[tuple[nn.Module, nn.Module]]:
    left = {str(node.target) for node in compact.graph.nodes if node.op == "call_module"}
    for node in original.graph.nodes:
        if node.op == "call_module" and node.target in left:
            yield original.owner(node.target), compact.owner(node.target)


def _tensors(original: Program, compact: Program) -> Iterator[tuple[Tensor, Tensor]]:
    now = dict(compact.tensors())
    for name, tensor in original.tensors():
        if name in now:
            yield tensor, now[name]


# Whether the model's own code goes along ------------------------------------------------------------------------------


def check_regions(model: nn.Module, regions: Regions, compact: Program, *, seed: int = 0) -> float:
    """Compare what every region's own forward computes with the program, on random inputs, in float64.

    Args:
        model: Holds the layers of the program.
        regions: Of the original.
        compact: What a pipeline made of their program.
        seed: Of the inputs.

    Returns:
        The largest relative difference.

    Raises:
        CompilerError: A region computes something else; the message names it.
    """
    return _settle(model, regions, compact, seed, own_code=True)[0]


def _settle(
    model: nn.Module, regions: Regions, compact: Program, seed: int, own_code: bool
) -> tuple[float, tuple[str, ...]]:
    """Check all regions, and let those that fail run their graphs; returns the largest difference, and their paths."""
    values = _values(regions, compact, seed)
    calls = Counter(region.path for region in regions.regions)
    rewritten: list[str] = []
    worst = 0.0
    for region in regions.regions:
        try:
            difference = _difference(model, region, values)
        except CompilerError:
            if own_code or calls[region.path] > 1:
                raise
            run_graph(model, region, regions.program, compact)
            rewritten.append(region.path)
            difference = _difference(model, region, values)
        worst = max(worst, difference)
    return worst, tuple(rewritten)


def _values(regions: Regions, compact: Program, seed: int) -> dict[str, Tensor]:
    """Run the program on random inputs, in float64; returns what goes in and out of regions."""
    wide = in_float64(compact)
    names = {name for region in regions.regions for name in (*region.inputs, *region.outputs)}
    with torch.no_grad(), default_float64():
        recorder = _Recorder(wide.module.eval(), names)
        try:
            recorder.run(*_random(wide.inputs, 2, seed))
        except RuntimeError:  # not all of it follows the batch
            recorder.run(*_random(wide.inputs, None, seed))
    return recorder.values


def _difference(model: nn.Module, region: Region, values: dict[str, Tensor]) -> float:
    missing = [name for name in (*region.inputs, *region.outputs) if name not in values]
    if missing:
        raise _refused(region, f"the pipeline replaced {missing[0]}")
    module = copy.deepcopy(model.get_submodule(region.path)).to("cpu").double().eval()
    try:
        with torch.no_grad(), default_float64():
            found = region.run(module, [values[name].clone() for name in region.inputs])
    except Exception as error:
        raise _refused(region, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error
    worst = 0.0
    for mine, name in zip(found, region.outputs, strict=True):
        theirs = values[name]
        if mine.shape != theirs.shape:
            raise _refused(region, f"it gives {list(mine.shape)} where {list(theirs.shape)} is right")
        if mine.numel():
            scale = float(theirs.abs().max()) or 1.0
            error = float((mine - theirs).abs().max()) / scale
            worst = max(worst, error if error == error else float("inf"))
    if worst > _TOLERANCE:
        raise _refused(region, f"its result is off by {worst:.2g} of the largest number in it")
    return worst


def _refused(region: Region, why: str) -> CompilerError:
    return CompilerError(
        f"the code of {region.path or 'the model'} does not go along with the pruned layers: {why}",
        where=region.path or None,
        hint="it counts on widths, or channels have to be moved in it; exclude its layers: "
        f"prune{{macs=0.5 exclude={region.path + '.' if region.path else ''}*}}; or do not ask for its own code",
    )


class _Recorder(fx.Interpreter):
    """Runs a program and keeps the values of some nodes as they are when they come about."""

    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self.names = names
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.names:
            self.values[n.name] = result.clone()
        return result


def _random(specs: Sequence[InputSpec], batch: int | None, seed: int) -> list[Tensor]:
    """Return random inputs; without a batch size, as many samples as there were."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for spec in specs:
        shape = (batch, *spec.shape[1:]) if spec.shape and batch is not None else spec.shape
        real = spec.dtype.is_floating_point
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64) if real else None
        found.append(numbers if numbers is not None else torch.randint(0, 2, shape, generator=generator).to(spec.dtype))
    return found


def _check_glue(model: nn.Module, before: Call, inputs: Sequence[Any]) -> None:
    """Run the pruned model, and put right what its blocks state about their own width (``out_channels``).

    Raises:
        CompilerError: It does not run.
    """
    try:
        after = record(model, inputs)
    except CaptureError as error:
        raise CompilerError(
            f"the model's own code does not go along with the pruned layers: {error.what}",
            where=error.where,
            hint="exclude the layers whose widths it counts on: prune{macs=0.5 exclude=backbone.fpn.*}",
        ) from error
    given, now = _widths(before), _widths(after)
    for path, module in model.named_modules():
        stated = module.__dict__.get("out_channels")
        if isinstance(stated, int) and given.get(path) == {stated} and len(now.get(path, ())) == 1:
            module.__dict__["out_channels"] = next(iter(now[path]))


def _widths(call: Call) -> dict[str, set[int]]:
    """Return the sizes along axis 1 of all that submodules give, by path."""
    found: dict[str, set[int]] = {}
    waiting = [call]
    while waiting:
        current = waiting.pop()
        waiting += current.parts
        sizes = found.setdefault(current.path, set())
        if current.gave is not None:
            sizes |= {spec.shape[1] if len(spec.shape) > 1 else -1 for spec in current.gave.tensors}
    return found


# Figures --------------------------------------------------------------------------------------------------------------


def _prunable(program: Program, deps: ChannelDependencies) -> tuple[float, float]:
    """Return the shares of MACs, of all layers and of convolutions, of layers that read or give what may go."""
    model = CostModel(program, deps)
    keep = np.ones(int(deps.class_of.max(initial=-1)) + 1, dtype=np.bool_)
    full = model.counts(keep)
    for group in deps.groups:
        for block in group.blocks:
            if block.levels > 1:
                keep[block.classes[~block.pinned]] = False
    least = model.counts(keep)
    kinds = {cost.layer: cost.kind for cost in layer_costs(program)}
    convolutions = [layer for layer in model.layers if kinds.get(layer.name) in _CONVOLUTIONS]

    def share(layers: Sequence[LayerProducts]) -> float:
        macs = [(_macs(layer, full), _macs(layer, least)) for layer in layers]
        return sum(a for a, b in macs if b < a) / max(sum(a for a, _ in macs), 1.0)

    return share(model.layers), share(convolutions)


def _macs(layer: LayerProducts, counts: Any) -> float:
    return float((counts[layer.rows].prod(axis=1) * layer.coefficients).sum())


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
