"""The benchmarks' shared parts, and (slow) one small run of each that needs nothing but the package."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def common() -> ModuleType:
    """Load benchmarks/common.py, which is a script's neighbour and no part of a package."""
    spec = importlib.util.spec_from_file_location("secateur_benchmarks_common", FOLDER / "common.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, str(FOLDER / script), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_slope_is_that_of_a_power_law(common: ModuleType) -> None:
    sizes = [1000.0, 2000.0, 5000.0]
    assert math.isclose(common.fit_slope(sizes, [3 * s**1.5 for s in sizes]), 1.5)


def test_tables_are_markdown(common: ModuleType) -> None:
    assert common.table(("model", "s"), [("a", 1), ("bb", 20)]) == [
        "| model |   s |",
        "| ----- | --: |",
        "| a     |   1 |",
        "| bb    |  20 |",
    ]


def test_records_name_no_place_of_this_machine(common: ModuleType) -> None:
    text = common.portable(f"File '{ROOT}/compiler/x.py' and {sys.prefix}/lib/y.py and /some/where/z.py, 1/2 and a/b")
    assert text == "File './compiler/x.py' and ENV/lib/y.py and z.py, 1/2 and a/b"
    assert str(ROOT) not in json.dumps(common.header(1))


@pytest.mark.slow
def test_one_model_passes_the_coverage_run(tmp_path: Path) -> None:
    run("coverage.py", "--only", "squeezenet1_1", "--data", str(tmp_path), "--out", str(tmp_path))
    (record,) = json.loads((tmp_path / "coverage.json").read_text())["models"]
    assert record["status"] == "ok"
    assert record["proof"]["error"] <= 1e-9
    assert record["emit"]["loaded"] == []
    text = (tmp_path / "coverage.md").read_text()
    assert "1 of 1 models passed" in text
    assert "CIFAR ResNets were skipped" in text
    assert not (tmp_path / "coverage.jsonl").exists()


@pytest.mark.slow
def test_small_networks_are_measured(tmp_path: Path) -> None:
    run("scaling.py", "--nodes", "300", "--repeats", "1", "--out", str(tmp_path))
    measured = json.loads((tmp_path / "scaling.json").read_text())["networks"]
    assert {kind: 300 <= records[0]["nodes"] < 320 for kind, records in measured.items()} == {
        "stages": True,
        "trunk": True,
    }
