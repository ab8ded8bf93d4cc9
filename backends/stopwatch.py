"""How long programs take where they will run: on an engine, after the passes that stand behind prune in the pipeline.

Profiles are kept in a file per machine, since learning how time depends on widths takes minutes: the same network in
the same form, on the same engine and processor, is not timed twice. ``SECATEUR_CACHE`` names the folder (by default
``~/.cache/secateur``); it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..compiler.cost import layer_costs
from ..compiler.cpu import read_cpu
from ..compiler.errors import OptionError
from ..compiler.printer import fingerprint
from ..compiler.program import Program
from ..passes.base import Pass
from ..passes.pipeline import PassPipeline
from ..passes.prune.latency import Profile
from . import engines
from .engines.agreement import random_inputs
from .engines.base import Engine, Profiler
from .timing import rounds, versions, warm_up

ROUNDS: Final = 30
MIN_SECONDS: Final = 2.0


class DeployedStopwatch:
    """Implements :class:`~..passes.prune.latency.Stopwatch`."""

    def __init__(self, engine: str, threads: int, batch: int, *, behind: Sequence[Pass] = ()) -> None:
        """Look the engine up.

        Args:
            engine: Its name.
            threads: Threads that it uses.
            batch: Inputs per call.
            behind: Passes that run between pruning and deployment.

        Raises:
            OptionError: There is no such engine.
            MissingExtraError: It is not installed.
        """
        self._engine, self._threads, self._batch = engines.get(engine), threads, batch
        drafts = (pass_.draft() for pass_ in behind)
        self._behind = PassPipeline([draft for draft in drafts if draft is not None])
        self._first: tuple[Program, Engine, list[Any]] | None = None

    @property
    def conditions(self) -> str:
        """Return the engine, threads and batch size, in words."""
        return f"{self._engine.name}, {self._threads} thread{'s' * (self._threads > 1)}, batch {self._batch}"

    def profile(self, program: Program) -> Profile:
        """Return where the time of a program goes."""
        place = _folder() / f"{self._key(program)}.json"
        known = _read(place)
        if known is not None:
            return known
        deployed = self._deployed(program)
        if not isinstance(self._engine, Profiler) or not self._engine.names_layers:
            raise OptionError(
                f"{self._engine.name} does not say where the time goes, so latency cannot be searched on it",
                where="engine",
                hint="engine=torch, onnx or openvino",
            )
        weighted = {cost.layer for cost in layer_costs(program)}
        layers: dict[str, float] = {}
        rest = 0.0
        for op in self._engine.profile(deployed, threads=self._threads, batch=self._batch):
            if op.node in weighted:
                layers[op.node] = layers.get(op.node, 0.0) + 1e-3 * op.ms
            else:
                rest += 1e-3 * op.ms
        made = Profile(layers, rest)
        _write(place, made)
        return made

    def compare(self, programs: Sequence[Program]) -> npt.NDArray[np.float64]:
        """Return seconds per call, [rounds, programs], of programs that took turns."""
        ready: list[tuple[Engine, list[Any]]] = []
        for program in programs:
            if self._first is None or self._first[0] is not program:
                engine = self._engine.build(self._deployed(program), threads=self._threads)
                inputs = list(random_inputs(program, self._batch))
                warm_up(engine, inputs)
                if self._first is None:  # the dense program, which every other is compared with
                    self._first = (program, engine, inputs)
                ready.append((engine, inputs))
            else:
                ready.append(self._first[1:])
        return rounds(ready, ROUNDS, MIN_SECONDS)

    def _deployed(self, program: Program) -> Program:
        return self._behind.run(program).program

    def _key(self, program: Program) -> str:
        parts = [
            fingerprint(program),
            self.conditions,
            str(self._behind),
            read_cpu().to_json(),
            versions([self._engine.name]),
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _folder() -> Path:
    given = os.environ.get("SECATEUR_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur"
    return base / "latency"


def _read(place: Path) -> Profile | None:
    try:
        content = json.loads(place.read_text())
        return Profile({str(k): float(v) for k, v in content["layers"].items()}, float(content["rest"]))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None  # not there, or damaged: measured again


def _write(place: Path, profile: Profile) -> None:
    """Write whole or not at all; a folder that cannot be written to is no reason to stop."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as file:
            json.dump({"layers": dict(profile.layers), "rest": profile.rest}, file)
        os.replace(file.name, place)
    except OSError:
        return
