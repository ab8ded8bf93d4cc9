"""What every engine offers: run a program with so many threads, write it to a file, say what it cannot do.

One engine is one file here and one row of ``ENGINES`` in :mod:`..catalog`. Engines take and give torch tensors on the
CPU; whatever structure the model returns comes back as a flat list, in the order of :func:`.agreement.flatten`.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...compiler.errors import MissingExtraError
from ...compiler.program import Program
from .agreement import Agreement
from .op_times import OpTime

Engine = Callable[..., list[Tensor]]
"""A model ready to run, with the number of threads that it was built for: positional input tensors -> output tensors.

The first call with new input shapes may be slow (compilation); those after it are what is to be timed.
"""


@dataclass(frozen=True)
class Unsupported:
    """Why an engine cannot take a program."""

    node: str
    reason: str


@dataclass(frozen=True)
class Emission:
    """What there is to say about a file that was written."""

    notes: tuple[str, ...] = ()
    """Sentences for the report: what the file cannot do."""
    agreement: Agreement | None = None
    """What running the file gave; ``None`` where it was not run."""


class Backend(Protocol):
    """One engine."""

    @property
    def name(self) -> str:
        """Return what users call it."""
        ...

    @property
    def integers(self) -> bool:
        """Tell whether it has kernels for integers; otherwise it computes what they stand for, in float32."""
        ...

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Return why the engine cannot take a program; nothing where it can, as far as can be told without trying."""
        ...

    def build(self, program: Program, *, threads: int) -> Engine:
        """Return a program ready to run.

        Raises:
            CompilerError: The engine cannot take it.
            MissingExtraError: A package is not installed.
        """
        ...

    def emit(self, program: Program, path: Path) -> Emission:
        """Write the file from which the engine runs.

        Raises:
            CompilerError: The engine cannot take the program.
            MissingExtraError: A package is not installed.
        """
        ...

    def load(self, path: Path, *, threads: int) -> Engine:
        """Return what :meth:`emit` wrote, ready to run.

        Raises:
            CompilerError: The file cannot be read.
            MissingExtraError: A package is not installed.
        """
        ...


@runtime_checkable
class Profiler(Protocol):
    """What an engine offers besides if it can time single operations."""

    names_layers: bool
    """Whether operations go by the layers that they belong to; else by names of the engine's own."""

    def profile(self, program: Program, *, threads: int, batch: int | None = None) -> list[OpTime]:
        """Run a program several times and return how long each operation takes, in the order in which they run.

        Args:
            program: What to run.
            threads: How many to use.
            batch: Size of axis 0 of every input; that of the example inputs by default.

        Raises:
            CompilerError: The engine cannot take it.
            MissingExtraError: A package is not installed.
        """
        ...


PROFILED_CALLS = 12
"""How often a program runs for that, besides a first time, which is not counted."""


def require(package: str, extra: str) -> Any:
    """Import an optional package.

    Raises:
        MissingExtraError: It is not installed; names the extra that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"the package '{package}' is not installed", hint=f"pip install 'secateur[{extra}]'"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def torch_threads(threads: int) -> Generator[None]:
    """Let torch use so many threads; afterwards as many as before."""
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if before != threads:
            torch.set_num_threads(before)


@contextmanager
def quiet() -> Generator[None]:
    """Keep what exporters print, log and warn about out of the user's way; what matters comes back as an error."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir", "onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with open(os.devnull, "w") as nothing, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with redirect_stdout(nothing), redirect_stderr(nothing) if sys.stderr else redirect_stdout(nothing):
                yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
