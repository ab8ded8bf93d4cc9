"""Single files that a command writes."""

from __future__ import annotations

from pathlib import Path

from ..compiler.errors import ArtefactError, OptionError


def check_folders(*files: Path | None) -> None:
    """Complain, before anything takes long, about files that could not be written.

    Raises:
        OptionError: There is no such directory.
    """
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise OptionError("there is no such directory", where=str(file.absolute().parent), hint="make it first")


def write(file: Path | None, content: str) -> None:
    """Write a text file, if one is wanted.

    Raises:
        ArtefactError: It cannot be written.
    """
    if file is None:
        return
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ArtefactError(f"cannot write: {error.strerror}", where=str(file)) from error
