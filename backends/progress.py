"""What a command says while it works: a spinner on a terminal, else a line for each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


class Progress:
    """Tells what is going on.

    Args:
        write: Prints a line where progress goes.
        console: The terminal there, if it is one.
        quiet: Say nothing.
    """

    def __init__(self, write: Callable[[str], None], console: Console | None, *, quiet: bool) -> None:
        self._write, self._quiet = write, quiet
        self._status = console.status("") if console is not None and not quiet else None
        if self._status is not None:
            self._status.start()

    def __call__(self, text: str) -> None:
        """Say what comes next."""
        if self._status is not None:
            self._status.update(text)
        elif not self._quiet and text != "starting":
            self._write(f"secateur: {text}")

    def tick(self, text: str) -> None:
        """Say how far it is, many times: on a terminal only."""
        if self._status is not None:
            self._status.update(text)

    def log(self, text: str) -> None:
        """Print a message that stays."""
        if self._quiet:
            return
        if self._status is not None:
            self._status.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._write(text)

    def stop(self) -> None:
        """Take the spinner away."""
        if self._status is not None:
            self._status.stop()
