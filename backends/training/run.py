"""``secateur train``: a network, images and a recipe to an artefact.

The output is what ``compile`` writes, and beside it the run:

    training.jsonl, training.csv, curves.svg    the figures of every epoch
    trained.safetensors                         what training ended with, where passes ran on it afterwards
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from ...compiler.capture import trace
from ...compiler.errors import OptionError
from ...compiler.options import spec_of
from ...passes.pipeline import PassPipeline
from .. import artefact, report, weights_file
from ..compile import Compiled, compile
from ..inputs import ModelInput
from . import log
from .checkpoint import Checkpoints
from .data import Data
from .loop import History, fit, make_fabric
from .methods.base import Method
from .recipe import Recipe

WEIGHTS: Final = "trained.safetensors"
_LAST: Final = 5
"""Epochs whose mean accuracy is reported."""

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run made."""

    compiled: Compiled
    history: History
    report: dict[str, Any]
    """The ``training`` of report.json."""
    extra: Mapping[str, bytes]
    """Files that stand beside the artefact's own."""

    def save(self, directory: Path, *, emit: Sequence[str] = ("python",), force: bool = False) -> Path:
        """Write the artefact, all of it or nothing; see :meth:`..compile.Compiled.save`."""
        return self.compiled.save(directory, emit=emit, force=force, extra=self.extra)


def run_folder(output: Path) -> Path:
    """Return where checkpoints of a run to ``output`` stand."""
    return output.with_name(f"{output.name}.run")


def prepare(output: Path, *, resume: bool, force: bool) -> Checkpoints:
    """Refuse what could not be written in the end, and open the checkpoints.

    Raises:
        ArtefactError: The output cannot be written.
        OptionError: An interrupted run stands there, and nothing says what to do with it; or there is none to resume.
    """
    artefact.check_writable(output, force)
    checkpoints = Checkpoints(run_folder(output))
    found = checkpoints.folder.exists()
    if found and not resume and not force:
        raise OptionError(
            "an interrupted run stands there",
            where=str(checkpoints.folder),
            hint="--resume continues it, --force begins anew",
        )
    if resume and not found:
        raise OptionError("there is no interrupted run to resume", where=str(checkpoints.folder), hint="leave it out")
    if found and not resume:
        checkpoints.clear()
    return checkpoints


def train(
    model: ModelInput,
    data: Data,
    recipe: Recipe,
    *,
    methods: Sequence[Method] = (),
    teacher: nn.Module | None = None,
    seed: int = 0,
    scratch: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    checkpoints: Checkpoints | None = None,
    asked: Mapping[str, Any] | None = None,
    verify: bool = True,
    progress: Progress = lambda text: None,
    tell: Callable[[dict[str, float]], None] | None = None,
) -> Trained | None:
    """Train a network and compile what comes out.

    Args:
        model: Its module is trained in place.
        data: Images.
        recipe: Numbers.
        methods: Called in order; their pipelines run afterwards, in order.
        teacher: For ``recipe.distill``.
        seed: Of everything random.
        scratch: Draw all weights anew first.
        accelerator: Fabric's name of a device.
        devices: Processes on this machine.
        checkpoints: See :func:`prepare`.
        asked: What else decides the result, for the record.
        verify: Prove the compiled result.
        progress: Told what is being done.
        tell: Told the figures of every epoch.

    Returns:
        The artefact to be; ``None`` on all processes but the first.

    Raises:
        CompilerError: See :func:`.loop.fit` and :func:`..compile.compile`.
    """
    if scratch:
        draw_again(model.module, seed)
    texts = [str(spec_of(method)) for method in methods]
    program = trace(model.module, model.example_inputs(), name=model.class_name)
    fabric = make_fabric(recipe, accelerator=accelerator, devices=devices)
    record = {**(asked or {}), "methods": texts, "source": model.spec, "scratch": scratch}
    history = fit(
        model.module,
        data,
        recipe,
        callbacks=[method.callback() for method in methods],
        program=program,
        teacher=teacher,
        seed=seed,
        fabric=fabric,
        checkpoints=checkpoints,
        record=record,
        progress=progress,
        log=tell,
    )
    if not fabric.is_global_zero:
        return None
    module = model.module.to("cpu")
    pipeline = ",".join(method.pipeline for method in methods if method.pipeline)
    extra = {
        "training.jsonl": log.jsonl(history.epochs),
        "training.csv": log.csv(history.epochs),
        "curves.svg": log.curves(model.class_name, history.epochs, history.dense),
    }
    source: dict[str, Any] = {"kind": "trained", "source": model.spec, "weights_file": "model.safetensors"}
    if pipeline:
        extra[WEIGHTS] = weights_file.to_bytes(module.state_dict(), report.METADATA)
        source |= {"weights_file": WEIGHTS, "weights_sha256": hashlib.sha256(extra[WEIGHTS]).hexdigest()}
    compiled = compile(
        module,
        model.example_inputs(),
        pipeline=pipeline or PassPipeline(()),
        verify=verify,
        seed=seed,
        name=model.class_name,
        source=source,
        progress=progress,
    )
    told = {**summary(history), "recipe": recipe.to_json(), "methods": texts, "data": data.spec, "seed": seed}
    told |= {
        "processes": fabric.world_size,
        "device": str(fabric.device),
        "scratch": scratch,
        "outputs": history.outputs,
    }
    compiled.report["training"] = told
    return Trained(compiled, history, told, extra)


def summary(history: History) -> dict[str, Any]:
    """Return the figures that a run is known by; accuracies in percent."""
    top1 = [figures["top1"] for figures in history.epochs]
    last = top1[-_LAST:]
    best = history.best
    return {
        "epochs": len(history.epochs),
        "before": history.dense,
        "top1": top1[-1],
        "best": {"epoch": best, "top1": top1[best - 1]} if best is not None else None,
        f"mean_of_last_{_LAST}": sum(last) / len(last),
        "seconds": round(sum(figures["seconds"] for figures in history.epochs), 1),
    }


def draw_again(module: nn.Module, seed: int) -> None:
    """Draw the weights of all layers anew, each as its class does: a network of the same shape that knows nothing.

    Raises:
        OptionError: A layer with weights does not say how they are drawn.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path, layer in module.named_modules():
            own = [*layer._parameters.values(), *layer._buffers.values()]
            if not any(tensor is not None for tensor in own):
                continue
            reset = getattr(layer, "reset_parameters", None)
            if not callable(reset):
                raise OptionError(
                    f"{path or type(module).__name__} ({type(layer).__name__}) does not say how its weights are drawn",
                    hint="give the network a reset_parameters() there, or train from the weights that it has",
                )
            reset()
