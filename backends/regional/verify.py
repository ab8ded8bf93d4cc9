"""Re-proving the artefact of a model that is Python around networks, from its files and the original.

1. the regions are found and pruned again; every tensor of model.safetensors is what comes of it, bit for bit
2. their program equals its masked original, in float64 on random inputs
3. the loaded model's own code computes, region by region, what that program does
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ...compiler.errors import CompilerError, ProofError
from ...compiler.plan import Plan
from ...passes.pipeline import PassPipeline
from .. import weights_file
from ..verify import Verification, compare_tensors
from .agreement import check_regions
from .compile import inputs_of
from .prune import prune_found


def verify_regions(
    directory: Path,
    report: Mapping[str, Any],
    plan: Plan,
    passes: PassPipeline,
    original: nn.Module,
    compact: nn.Module,
    *,
    progress: Callable[[str], None],
) -> Verification:
    """Prove an artefact again; see :func:`..verify.verify`.

    Args:
        directory: The artefact.
        report: Its report.
        plan: Its plan.
        passes: Its pipeline, with the recorded choices.
        original: The model that it was compiled from.
        compact: The model that it loads.
        progress: Told what is being done.
    """
    seed = int(report.get("seed", 0))
    made = prune_found(original, inputs_of(report, directory), passes, seed=seed, progress=progress)
    if made.report.plan.to_json() != plan.to_json():
        raise ProofError("plan.json is not what the pipeline keeps of the original", where=str(directory))
    progress("comparing the weights")
    stored = weights_file.read(directory / "model.safetensors")
    compare_tensors(stored, made.module.state_dict(), directory)
    progress("checking the model's own code")
    try:
        check_regions(compact, made.regions, made.result.program, seed=seed)
    except CompilerError as error:
        raise ProofError(error.what, where=str(directory)) from error
    return Verification(len(stored), made.checked or ())
