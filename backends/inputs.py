"""MODEL as the command line gives it, an artefact directory included, to a module and example inputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..compiler import sources
from ..compiler.errors import ArtefactError, OptionError
from ..compiler.weights import file_sha256
from . import artefact


@dataclass(frozen=True, eq=False)
class ModelInput:
    """A model and what it is to be traced with."""

    module: nn.Module
    class_name: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    """As many as are known; float32 for the rest."""
    spec: dict[str, Any]
    """Where the model comes from, for ``report.json``."""
    random: bool
    """Whether its weights are random."""

    def example_inputs(self) -> list[torch.Tensor]:
        """Return one tensor per input."""
        dtypes = [*self.dtypes, *[torch.float32] * len(self.shapes)]
        return [torch.zeros(shape, dtype=dtype) for shape, dtype in zip(self.shapes, dtypes, strict=False)]


def load(model: str, *, weights: str | None = None, shapes: Sequence[str] = (), seed: int = 0) -> ModelInput:
    """Find or build MODEL.

    Args:
        model: See ``sources.resolve``; or an artefact directory.
        weights: See ``sources.resolve``.
        shapes: Input shapes as text; those that the model asks for by default.
        seed: Of random weights.

    Raises:
        CompilerError: The model, its weights or a shape cannot be read.
    """
    given = tuple(parse_shape(text) for text in shapes)
    if sources.is_artefact(model):
        return _from_artefact(Path(model).expanduser(), weights, given)
    source = sources.resolve(model, weights=weights, seed=seed)
    return ModelInput(
        module=source.module,
        class_name=source.class_name,
        shapes=given or source.input_shapes,
        dtypes=(),
        spec=source.spec,
        random=source.kind != "callable" and source.spec["weights"] == "none",
    )


def _from_artefact(directory: Path, weights: str | None, given: tuple[tuple[int, ...], ...]) -> ModelInput:
    if weights is not None:
        raise OptionError("an artefact has its own weights", where="--weights", hint="leave it out")
    report = artefact.read_report(directory)
    module = artefact.load(directory)
    try:
        recorded = tuple(tuple(map(int, i["shape"])) for i in report["inputs"])
        dtypes = tuple(getattr(torch, i["dtype"]) for i in report["inputs"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"report.json is damaged: {error!r}", where=str(directory / "report.json")) from error
    spec = {
        "kind": "artefact",
        "directory": str(directory.absolute()),
        "weights_sha256": file_sha256(directory / "model.safetensors"),
        "source": report.get("source"),
    }
    return ModelInput(module, type(module).__name__, given or recorded, dtypes, spec, random=False)


def parse_shape(text: str) -> tuple[int, ...]:
    """Read ``1x3x224x224``.

    Raises:
        OptionError: It is not of that form.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise OptionError(f"cannot read the input shape '{text}'", where="--input", hint="--input 1x3x224x224")
    return tuple(map(int, text.split("x")))
