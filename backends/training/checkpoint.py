"""What an interrupted run needs to continue to the same result, in a folder beside the output.

    state.safetensors   weights, the optimizer's state, the callbacks' tensors
    best.safetensors    weights of the epoch with the best top-1
    run.json            epoch, step, history, recipe, scale of the loss, and what else was asked for

Each checkpoint is a folder of its own, complete before it gets its name; the one before it goes then. Random numbers
need no place here: they are drawn from generators that are seeded anew in every epoch.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...compiler.errors import ArtefactError, OptionError
from .. import weights_file
from .callback import Callback

_STATE, _BEST, _RUN = "state.safetensors", "best.safetensors", "run.json"
_PREFIX: Final = "epoch-"
_SHARE: Final = 0.05
"""Of the time of a run that writing checkpoints may take."""


@dataclass
class Saved:
    """A checkpoint that was read."""

    state: dict[str, Tensor]
    best: dict[str, Tensor]
    record: dict[str, Any]


class Checkpoints:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._next = 0.0

    def due(self) -> bool:
        """Tell whether enough time has passed since the last one was written, so that training is not slowed down."""
        return time.monotonic() >= self._next

    def latest(self) -> Saved | None:
        """Read the newest checkpoint; ``None`` if there is none.

        Raises:
            ArtefactError: It cannot be read.
        """
        found = sorted(self.folder.glob(f"{_PREFIX}*[0-9]")) if self.folder.is_dir() else []
        if not found:
            return None
        place = found[-1]
        try:
            record = json.loads((place / _RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtefactError(f"cannot read the checkpoint: {error}", where=str(place), hint="--force") from error
        best = place / _BEST
        return Saved(weights_file.read(place / _STATE), weights_file.read(best) if best.exists() else {}, record)

    def save(self, state: Mapping[str, Tensor], best: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write a checkpoint, all of it or nothing.

        Raises:
            ArtefactError: It cannot be written.
        """
        begin = time.monotonic()
        name = f"{_PREFIX}{record['epoch']:06d}"
        work, place = self.folder / f"{name}.part", self.folder / name
        try:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            weights_file.save(state, work / _STATE)
            if best:
                weights_file.save(best, work / _BEST)
            (work / _RUN).write_text(json.dumps(record), encoding="utf-8")
            shutil.rmtree(place, ignore_errors=True)
            work.rename(place)
        except OSError as error:
            raise ArtefactError(f"cannot write a checkpoint: {error.strerror}", where=str(work)) from error
        for other in self.folder.glob(f"{_PREFIX}*"):
            if other != place:
                shutil.rmtree(other, ignore_errors=True)
        end = time.monotonic()
        self._next = end + (end - begin) / _SHARE

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def pack(module: nn.Module, optimizer: torch.optim.Optimizer, callbacks: Sequence[Callback]) -> dict[str, Tensor]:
    """Return everything that changes while training, as tensors."""
    state = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if value is not None:
                state[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
    for place, callback in enumerate(callbacks):
        state |= {f"callback.{place}.{name}": tensor for name, tensor in callback.state().items()}
    return state


def unpack(
    state: Mapping[str, Tensor],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    callbacks: Sequence[Callback],
) -> None:
    """Put everything back.

    Raises:
        OptionError: The checkpoint is of another network or of other methods.
    """
    try:
        module.load_state_dict(_below(state, "model."))
    except RuntimeError as error:
        raise OptionError("the checkpoint is of another network", hint="--force begins anew") from error
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(state, "optimizer.").items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    device = next(module.parameters()).device  # files are read to the CPU, and only modules and optimizers look
    for place, callback in enumerate(callbacks):
        entries = _below(state, f"callback.{place}.")
        callback.load_state({name: tensor.to(device) for name, tensor in entries.items()})


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
