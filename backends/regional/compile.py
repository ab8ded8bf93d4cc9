"""From a model that is Python around networks to an artefact: prune its regions, and write a file that loads it.

model.py             builds the original, and gives the pruned layers their sizes: see :mod:`.loader`
model.safetensors    its state_dict
plan.json            what was kept of the original's tensors
report.json          ``kind`` is "regions"; ``regions`` says what was pruned, and which code reads what
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...compiler import sources, user_code
from ...compiler.errors import ArtefactError, CompilerError, OptionError
from ...compiler.plan import Plan
from ...passes.base import Pass
from ...passes.instruments import Instrument
from ...passes.pipeline import PassPipeline
from .. import artefact, catalog, records, report, weights_file
from ..inputs import ModelInput
from .calls import arguments, convention_of, random_images
from .loader import builder_of, emit_loader
from .prune import Pruned, prune_found
from .structure import compare

KIND: Final = "regions"
Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class CompiledRegions:
    """A model whose regions were pruned."""

    module: nn.Module
    """Of the original's class, called as before."""
    plan: Plan
    report: dict[str, Any]
    """The content of ``report.json``."""
    source: str
    """The text of ``model.py``."""

    def save(
        self,
        directory: str | Path,
        *,
        emit: Iterable[str] = ("python",),
        force: bool = False,
        extra: Mapping[str, bytes] | None = None,
        progress: Progress = lambda text: None,
    ) -> Path:
        """Write the artefact, all of it or nothing; see :meth:`..compile.Compiled.save`.

        Raises:
            OptionError: A backend is asked for that has no words for Python code.
            ArtefactError: The directory exists, or cannot be written.
        """
        check_backends(catalog.check(emit))
        directory = Path(directory)
        artefact.check_writable(directory, force)
        progress("writing model.py")
        record, state = copy.deepcopy(self.report), self.module.state_dict()
        files: dict[str, artefact.Content] = {
            "model.py": self.source.encode(),
            "model.safetensors": lambda path: weights_file.save(state, path, report.METADATA),
            "plan.json": records.to_bytes(self.plan.to_json()),
            **(extra or {}),
        }
        files["report.json"] = lambda path: records.write_report(record, path)
        artefact.write(directory, files, force=force)
        return directory


def check_backends(names: Sequence[str]) -> None:
    """Refuse backends that cannot express Python code.

    Raises:
        OptionError: Names the first.
    """
    other = next((name for name in names if name != "python"), None)
    if other is not None:
        raise OptionError(f"{other} cannot express the Python code between this model's networks", hint="--emit python")


def compile_regions(
    model: ModelInput,
    pipeline: PassPipeline,
    *,
    emit: Sequence[str] = ("python",),
    verify: bool = True,
    seed: int = 0,
    instruments: Sequence[Instrument] = (),
    progress: Progress = lambda text: None,
) -> CompiledRegions:
    """Prune the regions of a model.

    The model is run on random images of its input's shape, to see which code reads what.

    Args:
        model: With the record of where it comes from, which the file that is written builds it from again.
        pipeline: Passes; those that measure or calibrate have nothing to do that on, and none may make layers of ours.
        emit: Backends that will be asked for.
        verify: Prove the program of all regions.
        seed: Of the random images, and of the proof's inputs.
        instruments: What watches the passes.
        progress: Told what is being done.

    Raises:
        CompilerError: The model, its input and the pipeline do not go together; or there is no way to write it down.
        ProofError: The program is not equal to its masked original: a bug of secateur.
    """
    check_backends(emit)
    _check_passes(pipeline.passes)
    builder = builder_of(model.spec)
    images = random_images(model.shapes, seed)
    progress(f"running {model.class_name}")
    convention = convention_of(model.module, images)
    called = arguments(convention, images)
    pruned = prune_found(
        model.module,
        called,
        pipeline,
        in_vain=False,
        verify=verify,
        seed=seed,
        instruments=instruments,
        progress=progress,
    )
    progress("writing the file that loads it")
    place = (sources.root(model.spec) or {}).get("directory")  # of a user's own module
    with user_code.importable(Path(str(place))) if place is not None else nullcontext():
        source = emit_loader(
            builder,
            compare(_built(builder.expression, builder.lines), pruned.module, pruned.report.rewritten),
            title=f"{model.class_name}, compiled with {pipeline or 'no passes'}",
            kind=type(model.module).__name__,
            convention=convention,
            shape=model.shapes[0],
            codes=pruned.rewritten,
        )
        _check_loader(source, pruned.module, called)
    return CompiledRegions(
        module=pruned.module,
        plan=pruned.report.plan,
        report=_report(model, pipeline, pruned, convention, seed),
        source=source,
    )


def _check_passes(passes: Sequence[Pass]) -> None:
    for entry in passes:
        if getattr(entry, "latency", None) is not None:
            raise OptionError(
                "a model that is Python around networks has no time per call that an engine could measure",
                hint="prune{macs=0.5}, params or bytes",
            )


def _built(expression: str, lines: Sequence[str]) -> nn.Module:
    """Run what the emitted file builds the original by."""
    scope: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        exec("\n".join(lines), scope)
        return cast("nn.Module", eval(expression, scope)).eval()


def _check_loader(source: str, module: nn.Module, called: tuple[Any, ...]) -> None:
    """Run the emitted file, and compare what its model gives with the pruned model, bit for bit.

    Raises:
        CompilerError: It gives something else: the model keeps what decides in places that the file does not know.
    """
    scope: dict[str, Any] = {"__name__": "model"}
    exec(compile(source, "model.py", "exec"), scope)
    with torch.random.fork_rng(devices=[]):
        loaded = scope["build"]()
    loaded.load_state_dict(module.state_dict())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mine = module.eval()(*called)
        torch.manual_seed(0)
        theirs = loaded.eval()(*called)
    if not _same(mine, theirs):
        raise CompilerError(
            f"{type(module).__name__} keeps something that decides what it gives where the emitted file cannot put it",
            hint="in Python, secateur.prune_regions gives the pruned model itself",
        )


def _same(mine: Any, theirs: Any) -> bool:
    a, b = pytree.tree_flatten(mine), pytree.tree_flatten(theirs)
    if a[1] != b[1]:
        return False
    return all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else bool(x == y)
        for x, y in zip(a[0], b[0], strict=True)
    )


def _report(model: ModelInput, pipeline: PassPipeline, pruned: Pruned, convention: str, seed: int) -> dict[str, Any]:
    told, result = pruned.report, pruned.result
    content = report.build(
        pruned.regions.program,
        result.program,
        result,
        pipeline=str(pipeline),
        checked=pruned.checked,
        seed=seed,
        source=model.spec,
        accuracy=None,
        data=None,
        timings=told.timings,
    )
    inputs = [{"name": f"images_{i}", "shape": list(shape), "dtype": "float32"} for i, shape in enumerate(model.shapes)]
    regions = {
        "call": convention,
        "regions": list(told.regions),
        "rewritten": list(told.rewritten),
        "contracts": list(told.contracts),
        "borders": [asdict(border) for border in told.borders],
        "outside": told.outside,
        "prunable": told.prunable,
        "prunable_convolutions": told.prunable_convolutions,
        "agreement": told.agreement,
    }
    return {**content, "kind": KIND, "name": type(model.module).__name__, "inputs": inputs, "regions": regions}


def inputs_of(content: Mapping[str, Any], where: Path) -> tuple[Any, ...]:
    """Return what the model of a report was called with.

    Raises:
        ArtefactError: The report is damaged.
    """
    try:
        shapes = [tuple(map(int, entry["shape"])) for entry in content["inputs"]]
        return arguments(content["regions"]["call"], random_images(shapes, int(content["seed"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"report.json is damaged: {error!r}", where=str(where / "report.json")) from error
