"""Layer patterns, as options of passes name them."""

from __future__ import annotations

from fnmatch import fnmatchcase


def matches(pattern: str, layer: str) -> bool:
    """Tell whether a pattern means a layer: its name, the name of a module that contains it, or a shell pattern."""
    return layer == pattern or layer.startswith(pattern + ".") or fnmatchcase(layer, pattern)
