"""Artefacts bring their original along; it comes first, and once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import secateur
from secateur.backends import bench_candidates
from secateur.backends.inputs import load as load_model
from secateur.compiler.errors import OptionError
from support.small import Residual


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefacts")
    given = load_model("digits")
    for name, pipeline in (("half", "prune{macs=0.5}"), ("most", "prune{macs=0.9}")):
        compiled = secateur.compile(
            given.module, given.example_inputs(), pipeline=pipeline, verify=False, source=given.spec
        )
        compiled.save(folder / name)
    secateur.compile(Residual(), torch.zeros(1, 3, 8, 8), verify=False).save(folder / "memory")
    return folder


def test_an_artefact_and_its_original(artefacts: Path) -> None:
    said: list[str] = []
    original, compiled = bench_candidates.load([str(artefacts / "half")], progress=said.append)
    assert (original.name, compiled.name) == ("original", "half")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(original.program.module(x), load_model("digits").module(x))
    assert torch.equal(compiled.program.module(x), secateur.load(artefacts / "half")(x))
    assert said == [f"loading {artefacts / 'half'}", f"building the original of {artefacts / 'half'} again"]


def test_one_original_for_several_artefacts(artefacts: Path) -> None:
    found = bench_candidates.load([str(artefacts / "half"), str(artefacts / "most")])
    assert [c.name for c in found] == ["original", "half", "most"]


def test_models_as_they_are(artefacts: Path) -> None:
    found = bench_candidates.load(["digits", str(artefacts / "memory")])
    assert [c.name for c in found] == ["digits", "memory"]
    assert [c.program.inputs[0].shape for c in found] == [(1, 1, 8, 8), (1, 3, 8, 8)]


def test_equal_names_are_told_apart(artefacts: Path) -> None:
    path = str(artefacts / "memory")
    assert [c.name for c in bench_candidates.load([path, path, path])] == ["memory", path, f"{path} (3)"]


def test_different_originals_are_refused(artefacts: Path, tmp_path: Path) -> None:
    given = load_model("digits")
    other = secateur.compile(given.module, given.example_inputs(), verify=False, source={**given.spec, "seed": 7})
    other.save(tmp_path / "other")
    assert json.loads((tmp_path / "other" / "report.json").read_text())["source"]["seed"] == 7
    with pytest.raises(OptionError, match="different originals"):
        bench_candidates.load([str(artefacts / "half"), str(tmp_path / "other")])


def test_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match="needs something to time"):
        bench_candidates.load([])
