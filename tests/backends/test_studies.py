"""``sensitivity`` and ``compare`` as commands."""

import json
from pathlib import Path

import pytest

from secateur.cli import main
from secateur.passes.prune.sensitivity import read


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_sensitivity_writes_its_file_draws_and_resumes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, picture = tmp_path / "x.csv", tmp_path / "x.svg"
    command = ["sensitivity", "digits", "--data", "digits", "--images", 20, "-o", file, "--threads", 1]
    code, out, err = run(capsys, *command, "--ratios", "0.5", "--plot", picture)
    assert code == 0, err
    assert "conv1" in out
    assert "on 20 images" in out
    assert "secateur: conv1 at 0.5: 9 of 9 measurements left" in err
    assert picture.read_text().startswith("<svg")
    code, out, err = run(capsys, *command, "--ratios", "0.5", "--json")
    assert code == 0
    assert "measurements left" not in err
    found = json.loads(out)
    assert len(found["rows"]) == len(read(file).rows) == 9
    assert found["criterion"] == "l2"
    code, _, err = run(capsys, *command, "--criterion", "l1", "--quiet")
    assert code == 2
    assert "criterion was l2 and is l1" in err


def test_compare_has_a_grid_or_pipelines_or_both(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["compare", "digits", "--data", "digits", "--images", 20, "--quiet", "--threads", 1]
    file, picture = tmp_path / "x.csv", tmp_path / "x.svg"
    grid = ["--criteria", "l1", "--scopes", "uniform", "--macs", "0.9,0.8", "--behind", "fold-bn"]
    code, out, err = run(
        capsys, *command, *grid, "--pipeline", "prune{macs=0.1 min-width=14}", "-o", file, "--plot", picture
    )
    assert (code, err) == (0, "")
    assert "prune{macs=0.9 criterion=l1 scope=uniform},fold-bn" in out
    assert "failed" in out
    assert len(file.read_text().splitlines()) == 6
    assert "<title>" in picture.read_text()
    code, out, err = run(capsys, *command, "--pipeline", "prune{ratio=0.1}", "--json")
    assert (code, err) == (0, "")
    assert [row["pipeline"] for row in json.loads(out)["rows"]] == ["prune{ratio=0.1}"]


def test_compare_without_labels_agrees_with_the_dense_model(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "digits", "--data", "digits", "--images", 20, "--quiet", "--no-labels"]
    code, out, _ = run(capsys, *command, "--pipeline", "prune{ratio=0.1}", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["labelled"], found["dense"]) == (False, {"top1": 100.0, "loss": 0.0})
    assert found["notes"] == ["without labels (labels are not wanted): compared with the dense model's own answers"]
