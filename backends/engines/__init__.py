"""Engines that run programs; :mod:`.base` says what each offers. Importing this imports neither torch nor an engine."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ...compiler.errors import OptionError
from ..catalog import ENGINES

if TYPE_CHECKING:
    from .base import Backend


def get(name: str) -> Backend:
    """Return the engine of this name.

    Raises:
        OptionError: There is none.
    """
    row = ENGINES.get(name)
    if row is None:
        near = get_close_matches(name, ENGINES, n=3, cutoff=0.5)
        raise OptionError(
            f"there is no engine '{name}'", where="--backend", hint=f"one of {', '.join(near or ENGINES)}"
        )
    module = importlib.import_module(f".{row.module}", __name__)
    return getattr(module, row.attribute)()
