"""Re-proving an artefact: nothing is believed but its files and the original model, which is built again.

Where only channels were removed:

1. every tensor of model.safetensors is the original's, indexed by plan.json
2. model.py with these weights equals the masked original, in float64 on random inputs

Where other passes took part, the pipeline is run again on the original, and the files take the place of its result in
the checks that ``compile`` makes (:mod:`.checks`): every tensor bit for bit, the plan, and the outputs. What was fitted
to data comes out a little different with other threads or on another machine; then :mod:`.drift` says how much.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from ..compiler.capture import trace
from ..compiler.errors import ArtefactError, ProofError
from ..compiler.plan import Plan, index_tensor
from ..compiler.program import Program
from ..compiler.proof import prove
from ..compiler.weights import file_sha256
from ..passes.base import Contract
from ..passes.pipeline import PassPipeline, PipelineResult
from . import artefact, drift, weights_file
from .calibration import Calibration, open_again, takes_data
from .checks import Checked, check, compose, summary
from .compile import equip
from .drift import Drift
from .head import renew
from .source.emit import emitted_state

_GATHER: Final = re.compile(r"(.*\.)?gather_\d+")
"""Buffers of positions that pruning adds; the second check covers them."""


@dataclass(frozen=True)
class Verification:
    """What was checked, and found right."""

    tensors: int
    """How many tensors were compared, each found equal."""
    checked: tuple[Checked, ...]
    """What the outputs were compared with."""
    drift: Drift | None = None
    """What is not the same, where fitting again explains it."""

    def to_json(self) -> dict[str, Any]:
        """Return the outcome in the form of a report's ``verification``."""
        return {**summary(self.checked), **({"drift": self.drift.to_json()} if self.drift is not None else {})}


def verify(directory: str | Path, *, progress: Callable[[str], None] = lambda text: None) -> Verification:
    """Prove an artefact again.

    Args:
        directory: What ``compile`` wrote.
        progress: Told, in a few words, what is being done.

    Raises:
        ProofError: A tensor or the model as a whole is not what it should be.
        ArtefactError: A file is missing or damaged, or the artefact does not say what its original is.
        SourceError: The original cannot be built again.
    """
    directory = Path(directory)
    report, plan = artefact.read_report(directory), artefact.read_plan(directory)
    compact = artefact.load(directory)
    seed, text = _seed(report), str(report.get("pipeline", ""))
    passes = PassPipeline.parse(text) if text else PassPipeline(())
    passes = PassPipeline(pass_.recall(record) for pass_, record in zip(passes.passes, _records(report), strict=False))
    progress("building the original again")
    module = _original(report, directory)
    if report.get("kind") == "regions":
        from .regional.verify import verify_regions

        return verify_regions(directory, report, plan, passes, module, compact, progress=progress)
    original = _captured(module, report, directory)
    stored = weights_file.read(directory / "model.safetensors")
    if any(pass_.contract is not Contract.MASKED for pass_ in passes.passes):
        progress("running the pipeline again")
        data = _data(passes, report, directory)
        result = equip(passes, data, progress).run(original)
        if compose(original, result.steps).to_json() != plan.to_json():
            raise ProofError("plan.json is not what the pipeline keeps of the original", where=str(directory))
        made = emitted_state(result.program)
        drift = _drift(original, result, made, stored, compact, data, seed, progress)
        if drift is None:
            compare_tensors(stored, made, directory)
        module = compact if drift is None else result.program.module
        return Verification(len(stored), check(original, result.steps, module, seed=seed, progress=progress), drift)
    progress("comparing the weights")
    tensors = check_weights(stored, original, plan, directory)
    proof = prove(original, compact, plan, seed=seed, progress=progress).require()
    return Verification(tensors, (Checked((text,), Contract.MASKED, proof),))


def _drift(
    original: Program,
    result: PipelineResult,
    made: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    compact: nn.Module,
    data: Calibration | None,
    seed: int,
    progress: Callable[[str], None],
) -> Drift | None:
    """Return what is not the same in an artefact, and as good; ``None`` if all is, or has to be.

    Raises:
        ProofError: It is not as good.
    """
    if not any(step.changed and step.pass_.contract is Contract.APPROXIMATE for step in result.steps):
        return None
    kinds = ({name: (t.shape, t.dtype) for name, t in tensors.items()} for tensors in (made, stored))
    if next(kinds) != next(kinds):
        return None
    odd = drift.different(stored, made)
    if not odd:
        return None
    progress("measuring what fitting again changes")
    return drift.measure(original, result.program.module, compact, odd, data, seed)


def _data(passes: PassPipeline, report: Mapping[str, Any], directory: Path) -> Calibration | None:
    record = report.get("data")
    if record is None or not any(takes_data(pass_) for pass_ in passes.passes):
        return None
    if record.get("data") is None:
        raise ArtefactError(
            "the artefact was calibrated on data that were given in Python, so it cannot be made again from its files",
            where=str(directory / "report.json"),
            hint="compile with --data to be able to",
        )
    return open_again(record)


def compare_tensors(stored: Mapping[str, Tensor], made: Mapping[str, Tensor], where: Path) -> None:
    """Compare the stored tensors with what the pipeline makes, bit for bit.

    Raises:
        ProofError: Names the first that differs, or that only one side has.
    """
    if stored.keys() != made.keys():
        raise ProofError(f"the pipeline makes other tensors: {min(stored.keys() ^ made.keys())!r}", where=str(where))
    for name, tensor in stored.items():
        if not _same(tensor, made[name].cpu()):
            raise ProofError(f"{name!r} is not what the pipeline makes of the original", where=str(where))


def _seed(report: Mapping[str, Any]) -> int:
    seed = report.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def _records(report: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what each pass recorded of the choices that cannot be made again."""
    for entry in report.get("passes", []):
        record = entry.get("record")
        yield record if isinstance(record, Mapping) else {}


def _original(report: Mapping[str, Any], directory: Path) -> nn.Module:
    source = report.get("source")
    if not isinstance(source, Mapping):
        raise ArtefactError(
            "the artefact does not say where its original model comes from: it was compiled from a model in memory",
            where=str(directory / "report.json"),
            hint="in Python: secateur.compiler.proof.prove(secateur.trace(original, inputs), secateur.load(DIR), plan)",
        )
    return rebuild(cast("Mapping[str, Any]", source), directory)


def _captured(module: nn.Module, report: Mapping[str, Any], directory: Path) -> Program:
    try:
        inputs = [torch.zeros(i["shape"], dtype=getattr(torch, i["dtype"])) for i in report["inputs"]]
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ArtefactError(f"report.json is damaged: {error!r}", where=str(directory / "report.json")) from error
    return trace(module, inputs)


def rebuild(source: Mapping[str, Any], place: Path) -> nn.Module:
    """Build the model that a report's ``source`` records.

    Args:
        source: The record.
        place: The artefact that the report belongs to, which holds what a network was trained to.

    Raises:
        CompilerError: It is gone, or has changed.
    """
    module = _rebuilt(source, place)
    if source.get("head") is not None:
        renew(module, source["head"])
    return module


def _rebuilt(source: Mapping[str, Any], place: Path) -> nn.Module:
    if source.get("kind") == "trained":
        return _trained(source, place)
    if source.get("kind") != "artefact":
        from ..compiler import sources

        return sources.rebuild(source).module
    directory = Path(str(source.get("directory")))
    module = artefact.load(directory)
    weights = directory / "model.safetensors"
    if file_sha256(weights) != source.get("weights_sha256"):
        raise ArtefactError(
            "the artefact that was compiled from is not what it was then", where=str(weights), hint="compile it again"
        )
    return module


def _trained(source: Mapping[str, Any], place: Path) -> nn.Module:
    """Build a network as it was when training ended: what it was made of, with the weights in the artefact."""
    module = rebuild(source["source"], place)
    file = place / str(source["weights_file"])
    checksum = source.get("weights_sha256")
    if checksum is not None and file_sha256(file) != checksum:
        raise ArtefactError("the trained weights are not those that were compiled", where=str(file))
    state, known = weights_file.read(file), module.state_dict()
    try:
        module.load_state_dict({name: tensor for name, tensor in state.items() if name in known}, strict=False)
    except RuntimeError as error:
        raise ArtefactError("the trained weights do not fit the network", where=str(file)) from error
    return module


def check_weights(stored: Mapping[str, Tensor], original: Program, plan: Plan, where: Path) -> int:
    """Compare every stored tensor with the original's, indexed by the plan; return how many there are.

    Raises:
        ProofError: Names the first tensor that differs, is missing, or has no original.
    """
    originals = dict(original.tensors())
    unknown = [name for name in (*stored, *plan.kept) if name not in originals and not _GATHER.fullmatch(name)]
    if unknown:
        raise ProofError(f"the original has no tensor {unknown[0]!r}", where=str(where))
    missing = [name for name, tensor in originals.items() if isinstance(tensor, nn.Parameter) and name not in stored]
    if missing:
        raise ProofError(f"model.safetensors lacks the tensor {missing[0]!r}", where=str(where))
    checked = 0
    for name, tensor in stored.items():
        if name not in originals:
            continue
        try:
            wanted = index_tensor(originals[name].detach().cpu(), plan.kept.get(name, {}))
        except (IndexError, ValueError, TypeError, RuntimeError) as error:
            raise ProofError(f"plan.json does not fit the original's {name!r}: {error}", where=str(where)) from error
        if not _same(tensor, wanted):
            raise ProofError(f"{name!r} is not the original's, indexed by plan.json", where=str(where))
        checked += 1
    return checked


def _same(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.nan_to_num(), b.nan_to_num())
        and (not a.is_floating_point() or torch.equal(a.isnan(), b.isnan()))
    )
