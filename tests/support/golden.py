"""Comparison of text with files under tests/golden."""

import difflib
from pathlib import Path

import pytest


class Golden:
    """``golden("name", text)`` fails unless ``text`` is what NAME.txt holds; with ``update`` it writes the file."""

    def __init__(self, directory: Path, *, update: bool) -> None:
        self.directory = directory
        self.update = update

    def __call__(self, name: str, text: str) -> None:
        path = self.directory / f"{name}.txt"
        text = text.rstrip("\n") + "\n"
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"{path} does not exist; make it with `pytest --update-goldens`, and read it", pytrace=False)
        wanted = path.read_text(encoding="utf-8")
        if text != wanted:
            lines = difflib.unified_diff(wanted.splitlines(), text.splitlines(), str(path), "this run", lineterm="")
            pytest.fail("\n".join(lines), pytrace=False)
