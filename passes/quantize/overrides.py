"""Settings for single layers: ``layers=conv1:float,layer4.*:7,fc:minmax``.

``float`` keeps a layer in float; ``7`` and ``8`` are bits of its weight; an observer's name says how the range of its
output is found. What is given for a pattern holds for all layers that match; an exact name outranks a pattern.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from ...compiler.errors import OptionError
from ..patterns import matches
from .ranges import OBSERVERS

FLOAT: Final = "float"
BITS: Final = ("7", "8")
_VALUES: Final = (FLOAT, *BITS, *OBSERVERS)


def parse_overrides(text: str) -> dict[str, str]:
    """Read ``PATTERN:SETTING,...``.

    Raises:
        ValueError: Not of that form.
    """
    found: dict[str, str] = {}
    for item in text.split(","):
        pattern, colon, value = item.rpartition(":")
        if not colon or not pattern or value not in _VALUES:
            raise ValueError(f"expected layer:setting with a setting of {', '.join(_VALUES)}, found {item!r}")
        if pattern in found:
            raise ValueError(f"{pattern!r} is given twice")
        found[pattern] = value
    return found


def format_overrides(layers: Mapping[str, str]) -> str:
    """Print what :func:`parse_overrides` reads."""
    return ",".join(f"{pattern}:{value}" for pattern, value in layers.items())


def setting(layer: str, layers: Mapping[str, str], of: Collection[str]) -> str | None:
    """Return the setting of one kind that holds for a layer, ``None`` if none does."""
    if layers.get(layer) in of:
        return layers[layer]
    return next((value for pattern, value in layers.items() if value in of and matches(pattern, layer)), None)


def check(layers: Collection[str], names: Collection[str]) -> None:
    """Refuse patterns that match nothing.

    Raises:
        OptionError: Names the pattern.
    """
    for pattern in layers:
        if not any(matches(pattern, name) for name in names):
            raise OptionError(f"layers names no layer: {pattern!r}", hint="`secateur inspect` lists the layers")
