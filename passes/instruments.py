"""What watches a pipeline run: verification, timing, printing, dumping. Passes know nothing of it.

``before`` is called in the order of the instruments and ``after`` in the opposite order, so that an instrument encloses
those behind it: the verifier comes first, and what a broken pass did is printed and dumped before it objects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from time import perf_counter
from typing import Protocol

from ..compiler.errors import ArtefactError, InternalError
from ..compiler.options import spec_of
from ..compiler.program import Program
from .base import Pass, PassResult


class Instrument(Protocol):
    """The two moments at which a pipeline run can be watched."""

    def before(self, pass_: Pass, program: Program) -> None:
        """Called with the program that the pass is about to get."""
        ...

    def after(self, pass_: Pass, before: Program, result: PassResult) -> None:
        """Called with the program that the pass got and with what it returned."""
        ...


class VerifyEach:
    """Checks after every pass that the result is a valid program and that the pass kept its promises.

    A pass promises to leave the program it was given as it was, and to say truthfully that it changed nothing. Both are
    compared by the printed text, which names nodes, modules and shapes but no weights.
    """

    def __init__(self) -> None:
        self._given = ""

    def before(self, pass_: Pass, program: Program) -> None:
        """Remember the text of the program."""
        self._given = _text(program)

    def after(self, pass_: Pass, before: Program, result: PassResult) -> None:
        """Raise an ``InternalError`` that names the pass if anything is wrong."""
        from ..compiler.verifier import verify

        if _text(before) != self._given:
            raise InternalError(f"pass '{spec_of(pass_)}' changed the program that it was given")
        if not result.changed and result.program is not before and _text(result.program) != self._given:
            raise InternalError(f"pass '{spec_of(pass_)}' changed the program but says that it did not")
        try:
            verify(result.program)
        except InternalError as error:
            raise InternalError(f"pass '{spec_of(pass_)}' returned an invalid program: {error}") from error


class TimePasses:
    """Measures how long each pass takes. Put it last, so that it does not measure the other instruments."""

    def __init__(self) -> None:
        self.seconds: list[tuple[str, float]] = []
        """Pass name and seconds, in the order run; a pass that runs twice is there twice."""
        self._start = 0.0

    def before(self, pass_: Pass, program: Program) -> None:
        """Start the clock."""
        self._start = perf_counter()

    def after(self, pass_: Pass, before: Program, result: PassResult) -> None:
        """Stop the clock."""
        self.seconds.append((pass_.name, perf_counter() - self._start))


class PrintAfter:
    """Hands the program's text to ``write`` after each pass.

    Args:
        write: Gets the text; the command line's goes to stderr.
        only_changed: Leave out passes that changed nothing.
        names: Only after the passes of these names; ``None`` means all.
    """

    def __init__(
        self, write: Callable[[str], None], *, only_changed: bool = False, names: Collection[str] | None = None
    ) -> None:
        self._write = write
        self._only_changed = only_changed
        self._names = names

    def before(self, pass_: Pass, program: Program) -> None:
        """Do nothing."""

    def after(self, pass_: Pass, before: Program, result: PassResult) -> None:
        """Write the program, if it is wanted."""
        wanted = self._names is None or pass_.name in self._names
        if wanted and (result.changed or not self._only_changed):
            unchanged = "" if result.changed else " (no change)"
            self._write(f"# after {spec_of(pass_)}{unchanged}\n{_text(result.program)}")


class DumpEach:
    """Writes the program's text to numbered files: ``000_input.txt``, ``001_prune.txt``, and so on."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._count = 0

    def before(self, pass_: Pass, program: Program) -> None:
        """Write the input of the pipeline."""
        if self._count == 0:
            self._dump("input", program)

    def after(self, pass_: Pass, before: Program, result: PassResult) -> None:
        """Write the result of the pass."""
        self._count += 1
        self._dump(pass_.name, result.program)

    def _dump(self, name: str, program: Program) -> None:
        path = self._directory / f"{self._count:03d}_{name}.txt"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            path.write_text(_text(program), encoding="utf-8")
        except OSError as error:
            raise ArtefactError(f"a program dump cannot be written: {error.strerror}", where=str(path)) from error


def _text(program: Program) -> str:
    from ..compiler.printer import print_program

    return print_program(program)
