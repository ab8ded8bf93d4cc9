"""From a model to an artefact in one call: trace, run a pipeline, prove the result, write it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import torch
from torch import nn

from ..compiler.capture import trace
from ..compiler.errors import OptionError
from ..compiler.options import spec_of
from ..compiler.plan import Plan
from ..compiler.program import Program, referenced_tree
from ..passes.base import Pass, PassResult
from ..passes.instruments import Instrument
from ..passes.pipeline import PassPipeline
from . import artefact, catalog, engines, records, report, weights_file
from .checks import Checked, check, compose
from .stopwatch import DeployedStopwatch

DEFAULT_PIPELINE: Final = "prune{macs=0.5}"

Progress = Callable[[str], None]


def _silent(text: str) -> None:
    del text


@dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled model."""

    module: nn.Module
    """A normal, trainable module with the original state_dict names. It shares nothing with the model it came from."""
    program: Program
    """Its graph."""
    plan: Plan
    """What was kept of the original's tensors, over all passes."""
    report: dict[str, Any]
    """The content of ``report.json``."""
    original: Program
    """The model as captured."""

    def save(
        self,
        directory: str | Path,
        *,
        emit: Iterable[str] = ("python",),
        force: bool = False,
        extra: Mapping[str, bytes] | None = None,
        progress: Progress = _silent,
    ) -> Path:
        """Write the artefact, all of it or nothing.

        Args:
            directory: Where it will stand.
            emit: Backends, see ``secateur list backends``. Weights, plan and report are always written.
            force: Replace an artefact that stands there already.
            extra: Other files that belong to it.
            progress: Told what is being written.

        Returns:
            The directory.

        Raises:
            ArtefactError: The directory exists, or cannot be written.
            CompilerError: A backend cannot express the model.
        """
        from .source.emit import emit_source, emitted_state

        wanted = catalog.check(emit)
        directory = Path(directory)
        artefact.check_writable(directory, force)
        record: dict[str, Any] = copy.deepcopy(self.report)
        state = emitted_state(self.program)
        files: dict[str, artefact.Content] = {}
        if "python" in wanted:
            progress("writing model.py")
            title = f"{self.program.name}, compiled with {self.report['pipeline'] or 'no passes'}"
            with _timed(record["timings"], "emit"):
                files["model.py"] = emit_source(self.program, title=title).encode()
        files["model.safetensors"] = lambda path: weights_file.save(state, path, report.METADATA)
        files["plan.json"] = records.to_bytes(self.plan.to_json())
        if "pt2" in wanted:
            files["model.pt2"] = lambda path: self._export(path, record, progress)
        for name in wanted:
            if catalog.BACKENDS[name].engine:
                files[catalog.BACKENDS[name].file] = partial(self._emit, name, record, progress)
        files |= extra or {}
        # Last, because it tells what happened to the others.
        files["report.json"] = lambda path: records.write_report(record, path)
        artefact.write(directory, files, force=force)
        return directory

    def _emit(self, name: str, record: dict[str, Any], progress: Progress, path: Path) -> None:
        """Write an engine's file, and note how far the engine is from torch."""
        entry = catalog.BACKENDS[name]
        progress(f"writing {entry.file}")
        with _timed(record["timings"], name):
            found = engines.get(entry.engine).emit(self.program, path)
        record["notes"].extend(found.notes)
        if found.agreement is not None:
            record.setdefault("engines", {})[entry.engine] = found.agreement.to_json()

    def _export(self, path: Path, record: dict[str, Any], progress: Progress) -> None:
        from .engines.lower import evaluation_copy
        from .exported import emit_pt2

        progress("exporting model.pt2")
        inputs = [torch.zeros(i.shape, dtype=i.dtype) for i in self.program.inputs]
        with _timed(record["timings"], "export"):
            note = emit_pt2(evaluation_copy(self.program), inputs, path)
        if note is not None:
            record["notes"].append(note)


def compile(
    model: nn.Module | Program,
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | None = None,
    *,
    pipeline: str | PassPipeline = DEFAULT_PIPELINE,
    verify: bool = True,
    seed: int = 0,
    name: str | None = None,
    instruments: Sequence[Instrument] = (),
    progress: Progress = _silent,
    source: Mapping[str, Any] | None = None,
    data: Iterable[Any] | None = None,
) -> Compiled:
    """Compile a model; the model itself is never changed.

    Args:
        model: Any traceable module, or a program that was captured from one.
        example_inputs: One tensor, or one per positional input of ``forward``; shapes and dtypes matter. Not needed
            for a program.
        pipeline: Passes, as text or built.
        verify: Prove that the result equals the masked original, in float64 on random inputs.
        seed: Of the proof's random inputs.
        name: Class name for emitted code; the model's own by default.
        instruments: What watches the passes.
        progress: Told, in a few words, what is being done.
        source: Record of where the model comes from (``ModelSource.spec``), for ``secateur verify``.
        data: Calibration batches for the passes that want some: tensors, or tuples that begin with the inputs. A
            ``calibration.Calibration`` is recorded, so that ``secateur verify`` finds the images again.

    Returns:
        The compact module with its plan and report; ``save`` writes it.

    Raises:
        CompilerError: The model, the inputs or the pipeline do not go together; the message says what to do.
        ProofError: The result is not equal to the masked original: a bug of secateur.
    """
    passes = PassPipeline.parse(pipeline) if isinstance(pipeline, str) else pipeline
    passes = equip(passes, data, progress)
    timings: dict[str, float] = {}
    original = _captured(model, example_inputs, name, timings, progress)
    with _timed(timings, "passes"):
        result = passes.run(original, [*instruments, _Announce(progress)])
    plan = compose(original, result.steps)
    compact, module = _independent(result.program, original)
    checked: tuple[Checked, ...] | None = None
    if verify:
        with _timed(timings, "prove"):
            checked = check(original, result.steps, module, seed=seed, progress=progress)
    measured: dict[str, Any] | None = None
    if report.example_of(source) is not None:
        progress("measuring accuracy")
        with _timed(timings, "accuracy"):
            before = _independent(original, original)[1] if isinstance(model, Program) else model
            measured = report.accuracy(source, before, module)
    content = report.build(
        original,
        compact,
        result,
        pipeline=str(passes),
        checked=checked,
        seed=seed,
        source=source,
        accuracy=measured,
        data=None if data is None else getattr(data, "spec", {"data": None}),
        timings=timings,
    )
    return Compiled(module, compact, plan, content, original)


def equip(passes: PassPipeline, data: Iterable[Any] | None, progress: Progress) -> PassPipeline:
    """Hand data, progress and stopwatches to the passes that take them and were given none."""

    def equipped(place: int, pass_: Pass) -> Pass:
        names = {field.name: field for field in fields(pass_)}
        given: dict[str, Any] = {}
        if data is not None and "data" in names and getattr(pass_, "data", None) is None:
            given["data"] = data
        if "progress" in names and getattr(pass_, "progress", None) is names["progress"].default:
            given["progress"] = progress
        if "stopwatch" in names and getattr(pass_, "stopwatch", None) is None:
            given["stopwatch"] = partial(DeployedStopwatch, behind=passes.passes[place + 1 :])
        return replace(pass_, **given) if given else pass_

    return PassPipeline(equipped(place, pass_) for place, pass_ in enumerate(passes.passes))


def _captured(
    model: nn.Module | Program,
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | None,
    name: str | None,
    timings: dict[str, float],
    progress: Progress,
) -> Program:
    if isinstance(model, Program):
        return model
    if example_inputs is None:
        raise OptionError(
            "compile needs example inputs to trace a module", hint="compile(model, torch.zeros(1, 3, 224, 224))"
        )
    progress(f"tracing {name or type(model).__name__}")
    with _timed(timings, "trace"):
        return trace(model, example_inputs, name=name)


def _independent(program: Program, original: Program) -> tuple[Program, nn.Module]:
    """Return the program with a module tree of its own, and its module.

    Layers that nobody pruned are the user's own objects, and unpruned tensors share the user's memory: these are
    copied.
    What a pass made is taken as it is, so that no more memory is used than the copies need.
    """
    foreign = {tensor.untyped_storage().data_ptr() for _, tensor in original.tensors()}
    tree = referenced_tree(program.root, program.graph)
    made: dict[int, Any] = {}
    for tensor in (*tree.parameters(), *tree.buffers()):
        if tensor.untyped_storage().data_ptr() not in foreign:
            made[id(tensor)] = tensor
    root = copy.deepcopy(tree, made)
    graph = copy.deepcopy(program.graph) if program.graph is original.graph else program.graph
    compact = replace(program, graph=graph, root=root)
    flags = [(layer, layer.training) for layer in root.modules()]
    module = compact.module
    for layer, training in flags:  # building the module sets one flag for all; frozen batch norms keep theirs
        layer.training = training
    return compact, module


class _Announce:
    """Tells which pass is running."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def before(self, pass_: Pass, program: Program) -> None:
        """Announce the pass."""
        del program
        self._progress(f"running {spec_of(pass_)}")

    def after(self, pass_: Pass, before: Program, result: PassResult) -> None:
        """Do nothing."""


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Generator[None]:
    start = perf_counter()
    try:
        yield
    finally:
        timings[stage] = round(perf_counter() - start, 3)
