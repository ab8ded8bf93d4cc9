"""The JSON files of an artefact: laid out for people, who compare them line by line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """Return JSON, one entry per line, two levels deep: a plan has a line per tensor, a report a line per layer."""
    return (_lines(content, 0) + "\n").encode()


def _lines(value: Any, depth: int) -> str:
    if not value or depth == 2 or not isinstance(value, (dict, list)):
        return json.dumps(value)
    indent = " " * (depth + 1)
    if isinstance(value, dict):
        inner = [f"{indent}{json.dumps(key)}: {_lines(entry, depth + 1)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(inner) + f"\n{' ' * depth}}}"
    return "[\n" + ",\n".join(f"{indent}{_lines(entry, depth + 1)}" for entry in value) + f"\n{' ' * depth}]"


def write_report(content: Mapping[str, Any], path: Path) -> None:
    """Write ``report.json``, last of all files, with the sizes of the others."""
    others = {other.name: other.stat().st_size for other in sorted(path.parent.iterdir()) if other.name != path.name}
    path.write_bytes(to_bytes({**content, "files": others}))
