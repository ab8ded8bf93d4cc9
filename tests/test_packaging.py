"""What ships, what must be listed where, and how big a file may grow."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import secateur
from secateur.passes.catalog import PASSES

ROOT = Path(__file__).parent.parent
SHIPPED = ("compiler", "passes", "backends")
CHECKED = (*SHIPPED, "tests", "benchmarks")
MAX_LINES = 400
FRAMEWORK = {
    "__init__",
    "base",
    "calibration",
    "catalog",
    "edit",
    "instruments",
    "patterns",
    "pipeline",
    "presets",
    "slicing",
}
"""Modules of passes/ that are not passes."""


def sources() -> list[Path]:
    return [*ROOT.glob("*.py"), *(path for folder in CHECKED for path in (ROOT / folder).rglob("*.py"))]


def is_data(path: Path) -> bool:
    """Return whether a file is neither Python nor some tool's cache."""
    hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(ROOT).parts)
    return path.suffix != ".py" and not hidden


def pass_file(name: str) -> Path:
    module, _, _ = PASSES[name].target.partition(":")
    return ROOT / "passes" / (module.lstrip(".").replace(".", "/") + ".py")


def test_every_package_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent for top in SHIPPED for path in (ROOT / top).rglob("*.py")}
    assert listed == {"secateur"} | {"secateur." + ".".join(path.relative_to(ROOT).parts) for path in folders}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_every_data_file_is_listed() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package.removeprefix("secateur").replace(".", "/").lstrip("/")).glob(pattern)
    }
    found = {path for top in SHIPPED for path in (ROOT / top).rglob("*") if path.is_file() and is_data(path)}
    assert found | {ROOT / "py.typed"} == shipped


def test_every_python_file_at_the_root_ships_so_there_are_only_three() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py"}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES


@pytest.mark.parametrize("name", PASSES)
def test_every_row_has_a_file_and_a_test_file_of_its_name(name: str) -> None:
    path = pass_file(name)
    assert path.stem == name.replace("-", "_")
    assert path.exists()
    assert list((ROOT / "tests" / "passes").rglob(f"test_{path.stem}.py"))


def test_every_pass_has_a_row() -> None:
    found = {path.stem for path in (ROOT / "passes").iterdir() if path.suffix == ".py"} - FRAMEWORK
    found |= {path.parent.name for path in (ROOT / "passes").glob("*/__init__.py")} - FRAMEWORK
    rows = {pass_file(name).relative_to(ROOT / "passes").parts[0].removesuffix(".py") for name in PASSES}
    assert found == rows


def test_public_names_resolve() -> None:
    for name in secateur.__all__:
        assert getattr(secateur, name) is not None
    assert set(secateur.__all__) <= set(dir(secateur))
    with pytest.raises(AttributeError, match="module 'secateur' has no attribute 'prune'"):
        _ = secateur.prune


def test_importing_secateur_imports_no_torch() -> None:
    code = "import sys, secateur; print(sorted({'torch', 'torchvision', 'numpy'} & set(sys.modules)), dir(secateur))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("[] ['CompilerError'")
