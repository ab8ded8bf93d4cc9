"""Keeping what native libraries print past ``sys.stdout`` off it: standard output is for results."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Final

_STDOUT: Final = 1


@contextmanager
def dropped() -> Generator[None]:
    """Drop whatever is written to file descriptor 1, by any thread; nothing is done where there is none."""
    if sys.stdout is not None:  # as it is under pythonw
        sys.stdout.flush()
    _flush()
    try:
        kept = os.dup(_STDOUT)
    except OSError:
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDOUT)
    os.close(nowhere)
    try:
        yield
    finally:
        _flush()
        os.dup2(kept, _STDOUT)
        os.close(kept)


def _flush() -> None:
    """Write out what the C library holds back, which otherwise comes later."""
    with suppress(OSError, AttributeError, TypeError):  # Windows has no library of that name
        ctypes.CDLL(None).fflush(None)
