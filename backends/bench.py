"""Latency, measured so that it can be compared: paired and interleaved, warmed up, repeated.

All candidates run in turn, round by round (A B C, B C A, ...), so that whatever the machine does in the meantime hits
all of them alike. The ratio to the first candidate is taken within each round; its median and quartiles are reported.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch

from ..compiler.cpu import read_cpu
from ..compiler.errors import CompilerError, MissingExtraError, OptionError
from ..compiler.program import Program
from . import engines
from .engines.agreement import random_inputs
from .engines.base import Backend, Engine, Profiler
from .engines.lower import is_quantized
from .profile import Blame, blame, float_form
from .timing import rounds, versions, warm_up

REPEATS: Final = 30
MIN_SECONDS: Final = 1.0
_BLOCK: Final = 16
"""Channels per block of ONNX Runtime's NCHWc layout with AVX-512 (8 with AVX2); others take a slower way around."""

Progress = Callable[[str], None]


def _silent(text: str) -> None:
    del text


@dataclass(frozen=True, eq=False)
class Candidate:
    """What is to be timed. The first one is the original, to which the others are compared."""

    name: str
    program: Program


@dataclass(frozen=True)
class Setting:
    """Under which conditions."""

    backend: str
    threads: int
    batch: int

    def __str__(self) -> str:
        """Return the form of notes."""
        return f"{self.backend}, {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}"


@dataclass(frozen=True)
class Ratio:
    """Time relative to the first candidate's, round by round; below 1 is faster."""

    median: float
    lower: float
    """First quartile."""
    upper: float
    """Third quartile."""

    def __str__(self) -> str:
        """Return the form of notes."""
        return f"{self.median:.2f} of its time, quartiles {self.lower:.2f} to {self.upper:.2f}"


@dataclass(frozen=True)
class Row:
    """One candidate in one setting."""

    setting: Setting
    candidate: str
    p50: float
    """Median, seconds per call (a call is one batch)."""
    p90: float
    """Ninth decile, seconds per call."""
    rounds: int
    ratio: Ratio | None
    """``None`` for the first candidate, and where that one did not run."""


@dataclass(frozen=True)
class Refusal:
    """What did not run, and why."""

    setting: Setting
    candidate: str
    reason: str


@dataclass(frozen=True)
class Profile:
    """Where the time of an int8 candidate goes, beside that of its float32 form, in one setting."""

    setting: Setting
    candidate: str
    against: str
    """The float32 candidate."""
    blame: Blame


@dataclass(frozen=True)
class BenchReport:
    """What was measured."""

    rows: tuple[Row, ...]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]
    machine: dict[str, Any]
    versions: dict[str, str]
    profiles: tuple[Profile, ...] = ()
    """Of the int8 candidates that are not faster than their float32 form, or of all that have one."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values; times in milliseconds."""
        return {
            "format": 1,
            "rows": [
                {
                    "candidate": row.candidate,
                    **asdict(row.setting),
                    "p50_ms": 1e3 * row.p50,
                    "p90_ms": 1e3 * row.p90,
                    "rounds": row.rounds,
                    "ratio": asdict(row.ratio) if row.ratio is not None else None,
                }
                for row in self.rows
            ],
            "refusals": [{"candidate": r.candidate, **asdict(r.setting), "reason": r.reason} for r in self.refusals],
            "notes": list(self.notes),
            "profiles": [
                {"candidate": p.candidate, "against": p.against, **asdict(p.setting), **p.blame.to_json()}
                for p in self.profiles
            ],
            "machine": self.machine,
            "versions": self.versions,
        }


def bench(
    candidates: Sequence[Candidate],
    *,
    backends: Sequence[str] = ("torch",),
    threads: Sequence[int] = (1,),
    batch_sizes: Sequence[int] = (1,),
    repeats: int = REPEATS,
    min_seconds: float = MIN_SECONDS,
    seed: int = 0,
    profile: bool = False,
    progress: Progress = _silent,
    find: Callable[[str], Backend] = engines.get,
    clock: Callable[[], float] = perf_counter,
) -> BenchReport:
    """Time candidates against one another.

    Args:
        candidates: What to time, the original first; all must take the same inputs. They are held in memory together.
        backends: Names of engines, see ``catalog.ENGINES``.
        threads: Numbers of threads to try.
        batch_sizes: Sizes of axis 0 of all inputs to try.
        repeats: Rounds at least.
        min_seconds: Time that the rounds of a setting take at least, all candidates together.
        seed: Of the inputs, random ones.
        profile: Compare the operations of every int8 candidate with those of its float32 form, one by one; otherwise
            only of those that are not faster than it.
        progress: Told, in a few words, what is being done.
        find: From a name to an engine.
        clock: Seconds.

    Returns:
        Times and ratios; what an engine cannot run is in ``refusals``, with the reason.

    Raises:
        OptionError: A number is out of range, an engine does not exist, or there is nothing to time.
        MissingExtraError: An engine is not installed.
    """
    _check(candidates, threads, batch_sizes, repeats)
    rows: list[Row] = []
    refusals: list[Refusal] = []
    profiles: list[Profile] = []
    for backend in [find(name) for name in dict.fromkeys(backends)]:
        for count in dict.fromkeys(threads):
            settings = [Setting(backend.name, count, batch) for batch in dict.fromkeys(batch_sizes)]
            built: list[tuple[Candidate, Engine]] = []
            for candidate in candidates:
                progress(f"building {candidate.name} for {backend.name}, {count} thread{'s' * (count > 1)}")
                try:
                    built.append((candidate, _build(backend, candidate.program, count)))
                except _RefusedError as refused:
                    refusals += [Refusal(setting, candidate.name, str(refused)) for setting in settings]
            for setting in settings:
                progress(f"timing {setting}")
                found, refused = _time(setting, built, candidates[0], repeats, min_seconds, seed, clock)
                rows += found
                refusals += refused
                profiles += _profiles(setting, backend, candidates, found, profile, progress)
    return BenchReport(
        tuple(rows),
        tuple(refusals),
        tuple(_notes(rows, candidates, [b for b in dict.fromkeys(backends) if not find(b).integers])),
        {**read_cpu().to_json(), "system": platform.system()},
        versions(backends),
        tuple(profiles),
    )


class _RefusedError(Exception):
    """The engine cannot take the program."""


def _check(candidates: Sequence[Candidate], threads: Sequence[int], batch_sizes: Sequence[int], repeats: int) -> None:
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) < len(names):
        raise OptionError("bench needs candidates with different names", where=", ".join(names) or None)
    for option, numbers in (("--threads", threads), ("--batch", batch_sizes), ("--repeats", [repeats])):
        if not numbers or min(numbers) < 1:
            raise OptionError("bench needs numbers of at least 1", where=option)


def _build(backend: Backend, program: Program, threads: int) -> Engine:
    found = backend.unsupported(program)
    if found:
        raise _RefusedError(f"{found[0].node}: {found[0].reason}")
    try:
        return backend.build(program, threads=threads)
    except MissingExtraError:
        raise
    except CompilerError as error:
        raise _RefusedError(error.what) from error


def _time(
    setting: Setting,
    built: Sequence[tuple[Candidate, Engine]],
    first: Candidate,
    repeats: int,
    min_seconds: float,
    seed: int,
    clock: Callable[[], float],
) -> tuple[list[Row], list[Refusal]]:
    refusals: list[Refusal] = []
    ready: list[tuple[Candidate, Engine, list[torch.Tensor]]] = []
    for candidate, engine in built:
        inputs = random_inputs(candidate.program, setting.batch, seed=seed)
        try:
            warm_up(engine, inputs, clock)
        except CompilerError as error:
            refusals.append(Refusal(setting, candidate.name, error.what))
        else:
            ready.append((candidate, engine, inputs))
    if not ready:
        return [], refusals
    times = rounds([(engine, inputs) for _, engine, inputs in ready], repeats, min_seconds, clock)
    base = next((i for i, (candidate, _, _) in enumerate(ready) if candidate is first), None)
    rows: list[Row] = []
    for i, (candidate, _, _) in enumerate(ready):
        ratio = None
        if base is not None and i != base:
            quartiles = np.quantile(times[:, i] / times[:, base], (0.25, 0.5, 0.75))
            ratio = Ratio(float(quartiles[1]), float(quartiles[0]), float(quartiles[2]))
        p50, p90 = (float(value) for value in np.quantile(times[:, i], (0.5, 0.9)))
        rows.append(Row(setting, candidate.name, p50, p90, len(times), ratio))
    return rows, refusals


def _profiles(
    setting: Setting,
    backend: Backend,
    candidates: Sequence[Candidate],
    rows: Sequence[Row],
    wanted: bool,
    progress: Progress,
) -> list[Profile]:
    """Profile int8 candidates: all if wanted, otherwise those that are not faster than their float32 form."""
    if not isinstance(backend, Profiler) or not (wanted or backend.integers):
        return []
    p50 = {row.candidate: row.p50 for row in rows}
    ran = [candidate for candidate in candidates if candidate.name in p50]
    found: list[Profile] = []
    for candidate in ran:
        form = float_form(candidate.program, [other.program for other in ran])
        against = next((other for other in ran if other.program is form), None)
        if against is None or not (wanted or p50[candidate.name] >= p50[against.name]):
            continue
        progress(f"profiling {candidate.name} and {against.name}, {setting}")
        before, after = (
            backend.profile(c.program, threads=setting.threads, batch=setting.batch) for c in (against, candidate)
        )
        found.append(Profile(setting, candidate.name, against.name, blame(before, after)))
    return found


def _notes(rows: Sequence[Row], candidates: Sequence[Candidate], simulating: Sequence[str]) -> list[str]:
    programs = {candidate.name: candidate.program for candidate in candidates}
    notes: list[str] = []
    ragged = False
    for row in rows:
        if row.ratio is not None and row.ratio.upper >= 1.0:
            how = "clearly faster" if row.ratio.median < 1.0 else "faster"
            notes.append(f"{row.setting}: {row.candidate} is not {how} than {candidates[0].name} ({row.ratio})")
            ragged |= row.setting.backend == "onnx" and _is_ragged(programs[row.candidate])
    if ragged:
        notes.append(
            f"ONNX Runtime's fast convolutions need widths that are multiples of {_BLOCK}: "
            f"try prune{{... round-to={_BLOCK}}}"
        )
    integers = {name for name, program in programs.items() if is_quantized(program)}
    for backend in simulating:
        simulated = sorted({row.candidate for row in rows if row.setting.backend == backend} & integers)
        if simulated:
            notes.append(f"{backend} computes the integers of {', '.join(simulated)} in float32")
    return notes


def _is_ragged(program: Program) -> bool:
    """Tell whether a convolution puts out a number of channels that is no multiple of the block."""
    return any(tensor.ndim == 4 and tensor.shape[0] % _BLOCK for _, tensor in program.tensors())
