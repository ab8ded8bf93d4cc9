"""Engines that run programs; :mod:`.base` says what each offers. Importing this imports neither torch nor an engine."""

from __future__ import annotations

import importlib
import importlib.util
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ...compiler.errors import MissingExtraError, OptionError
from ..catalog import ENGINES

if TYPE_CHECKING:
    from .base import Backend


def get(name: str) -> Backend:
    """Return the engine of this name.

    Raises:
        OptionError: There is none.
        MissingExtraError: A package that it needs is not installed: said now, before any long work.
    """
    row = ENGINES.get(name)
    if row is None:
        near = get_close_matches(name, ENGINES, n=3, cutoff=0.5)
        raise OptionError(
            f"there is no engine '{name}'", where="--backend", hint=f"one of {', '.join(near or ENGINES)}"
        )
    for package in row.packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"the package '{package}' is not installed", hint=f"pip install 'secateur[{row.extra}]'"
            )
    module = importlib.import_module(f".{row.module}", __name__)
    return getattr(module, row.attribute)()
