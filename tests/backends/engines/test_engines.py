"""Finding engines by name."""

import importlib.util
from typing import Any

import pytest

from secateur.backends import engines
from secateur.backends.catalog import BACKENDS, ENGINES
from secateur.compiler.errors import MissingExtraError, OptionError


@pytest.mark.parametrize("name", ENGINES)
def test_every_row_is_an_engine_of_that_name(name: str) -> None:
    assert engines.get(name).name == name


def test_every_file_is_written_by_an_engine_that_exists() -> None:
    assert {entry.engine for entry in BACKENDS.values()} - {""} <= ENGINES.keys()


def test_unknown_names_come_with_near_ones() -> None:
    with pytest.raises(OptionError, match="there is no engine 'openvin'") as error:
        engines.get("openvin")
    assert error.value.hint == "one of openvino, onnx"


@pytest.mark.parametrize("name", [name for name, row in ENGINES.items() if row.packages])
def test_a_missing_package_is_said_before_any_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ENGINES[name].packages[0]
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda p, *rest: None if p == missing else find(p, *rest))
    with pytest.raises(MissingExtraError, match=f"'{missing}' is not installed") as error:
        engines.get(name)
    assert error.value.hint == f"pip install 'secateur[{ENGINES[name].extra}]'"
