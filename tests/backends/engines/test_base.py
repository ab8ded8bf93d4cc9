"""What all engines share: optional packages, silence, threads."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from typing import Any

import pytest
import torch

from secateur.backends import engines
from secateur.backends.catalog import BACKENDS, ENGINES
from secateur.backends.engines.base import first_line, quiet, require, torch_threads
from secateur.compiler.errors import MissingExtraError, OptionError
from support.small import Residual, captured


@pytest.mark.parametrize("name", ENGINES)
def test_every_row_is_an_engine(name: str) -> None:
    engine = engines.get(name)
    assert engine.name == name
    assert engine.unsupported(captured(Residual())) == []


def test_every_engine_that_writes_is_in_the_table() -> None:
    assert {row.engine for row in BACKENDS.values() if row.engine} <= set(ENGINES)


def test_an_unknown_engine_is_refused_with_a_proposal() -> None:
    with pytest.raises(OptionError, match=r"no engine 'openvno'\n.*\n.*openvino"):
        engines.get("openvno")


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("onnx", "onnxruntime", "onnx"),
        ("onnx", "onnx", "onnx"),
        ("onnx", "onnxscript", "onnx"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_a_missing_package_names_its_extra(
    name: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def fail(package: str, *rest: Any) -> Any:
        if package == missing:
            raise ImportError(package)
        return real(package, *rest) if rest or package.startswith("secateur") else sys

    monkeypatch.setattr(importlib, "import_module", fail)
    engine = engines.get(name)
    with pytest.raises(MissingExtraError) as error:
        engine.build(captured(Residual()), threads=1)
    assert missing in error.value.what
    assert error.value.hint == f"pip install 'secateur[{extra}]'"


def test_require_returns_the_module() -> None:
    assert require("json", "none").__name__ == "json"


def test_quiet_silences_and_puts_back(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("torch")
    before = logger.level
    with quiet():
        print("printed")
        print("printed", file=sys.stderr)
        warnings.warn("warned", stacklevel=1)
        logging.getLogger("torch.onnx").error("logged")
    assert capfd.readouterr() == ("", "")
    assert logger.level == before
    with pytest.warns(UserWarning, match="again"):
        warnings.warn("again", stacklevel=1)


def test_threads_are_put_back_after_an_error() -> None:
    torch.set_num_threads(1)
    during: list[int] = []

    def fail() -> None:
        with torch_threads(2):
            during.append(torch.get_num_threads())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert during == [2]
    assert torch.get_num_threads() == 1


def test_first_line() -> None:
    assert first_line(ValueError("\n  what\nmore")) == "what"
    assert first_line(ValueError()) == "ValueError"
