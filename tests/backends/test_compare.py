"""Comparisons: one row per pipeline, measured as anything else, sorted, with reasons for what failed."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from secateur.backends import inputs
from secateur.backends.compare import compare, grid, plot, study
from secateur.backends.comparison import Comparison, Row
from secateur.backends.quality import Judge, Quality, open_judged
from secateur.compiler.cost import measure
from secateur.compiler.errors import OptionError, PipelineSyntaxError
from secateur.passes.prune.prune import Prune
from support.judged import images, judge, program
from support.small import captured

DENSE = Quality(90.0, 0.25)


def test_a_grid_has_every_combination_and_what_runs_behind() -> None:
    assert grid(["l1", "l2"], ["global"], [0.7, 0.5], "fold-bn") == [
        "prune{macs=0.7 criterion=l1 scope=global},fold-bn",
        "prune{macs=0.5 criterion=l1 scope=global},fold-bn",
        "prune{macs=0.7 criterion=l2 scope=global},fold-bn",
        "prune{macs=0.5 criterion=l2 scope=global},fold-bn",
    ]


def test_rows_are_what_the_pipelines_give_the_most_accurate_first() -> None:
    dense = program()
    judged = judge(dense)
    pipelines = grid(["l1", "random"], ["uniform", "knapsack"], [0.8, 0.5])
    found = compare(dense, judged, [*pipelines, pipelines[0]])
    assert sorted(row.pipeline for row in found.rows) == sorted(pipelines)
    assert [(-(row.top1 or 0), row.loss) for row in found.rows] == sorted((-(r.top1 or 0), r.loss) for r in found.rows)
    (row,) = (row for row in found.rows if row.pipeline == "prune{macs=0.5 criterion=random scope=uniform}")
    pruned = Prune(macs=0.5, criterion="random").run(dense).program
    quality = judged(pruned)
    assert (row.top1, row.loss) == (quality.top1, quality.loss)
    assert row.macs == measure(pruned).macs / measure(dense).macs
    assert row.params == measure(pruned).params / measure(dense).params
    assert (found.dense, found.images, found.labelled) == (judged.dense, 24, True)


def test_what_cannot_be_carried_out_is_a_row_with_the_reason() -> None:
    dense = program()
    pipelines = ["prune{macs=0.01 min-width=6}", "fold-bn,reestimate-bn", "prune{macs=0.7}", "prune{ratio=0.5}"]
    rows = compare(dense, judge(dense), pipelines).rows
    assert {row.pipeline for row in rows[:2]} == {"prune{macs=0.7}", "prune{ratio=0.5}"}
    failed = {row.pipeline: row for row in rows[2:]}
    assert failed["prune{macs=0.01 min-width=6}"].reason.startswith("macs=0.01 cannot be reached")
    assert failed["fold-bn,reestimate-bn"].reason.startswith("reestimate-bn must stand right after prune")
    assert all((row.top1, row.macs, row.seconds) == (None, None, None) for row in failed.values())


def test_criteria_and_passes_get_the_data() -> None:
    dense = program()
    judged = judge(dense)
    pipeline = "prune{macs=0.7 criterion=taylor},reestimate-bn"
    (without,) = compare(dense, judged, [pipeline]).rows
    assert "none were given" in without.reason
    (row,) = compare(dense, judged, [pipeline], data=[batch for batch, _ in judged.batches]).rows
    assert row.reason == ""
    assert row.top1 is not None
    assert "reestimate-bn: no batch norm stands behind pruned channels" in row.notes


def test_mistakes_are_told_before_anything_runs() -> None:
    dense = program()
    texts: list[str] = []
    for pipelines, error in (
        (["prune{macs=0.5}", "prune{criterion=l3 macs=0.5}"], OptionError),
        (["prune{macs=0.5}", "prune{"], PipelineSyntaxError),
        ([], OptionError),
    ):
        with pytest.raises(error):
            compare(dense, judge(dense), pipelines, progress=texts.append)
    assert texts == []


def test_a_comparison_that_was_stopped_goes_on_and_candidates_can_be_added(tmp_path: Path) -> None:
    dense, file = program(), tmp_path / "x.csv"

    def kill(text: str) -> None:
        if text.startswith("pipeline 3 of 3"):
            raise KeyboardInterrupt

    pipelines = grid(["l1"], ["uniform"], [0.9, 0.8, 0.7])
    with pytest.raises(KeyboardInterrupt):
        compare(dense, judge(dense), pipelines, file=file, progress=kill)
    before = table(file)
    assert before[0]["series"] == "dense"
    assert {row["pipeline"] for row in before[1:]} == set(pipelines[:2])
    told: list[str] = []
    found = compare(dense, judge(dense), pipelines, file=file, progress=told.append)
    assert told == [f"pipeline 1 of 1: {pipelines[2]}"]
    assert [float(row["loss"]) for row in table(file)] == [found.dense.loss, *(row.loss for row in found.rows)]
    whole = compare(dense, judge(dense), pipelines)
    assert [replace(row, seconds=0.0) for row in found.rows] == [replace(row, seconds=0.0) for row in whole.rows]
    found = compare(dense, judge(dense), ["prune{ratio=0.5},reestimate-bn"], file=file, progress=told.append)
    assert len(told) == 2
    assert {row.pipeline for row in found.rows} == {*pipelines, "prune{ratio=0.5},reestimate-bn"}


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text().partition("\n")[2])))


def test_what_failed_is_run_again_and_notes_are_read_back(tmp_path: Path) -> None:
    dense, file = program(), tmp_path / "x.csv"
    judged, told = judge(dense), list[str]()
    pipelines = ["prune{macs=0.7}", "prune{macs=0.7},reestimate-bn"]
    rows = compare(dense, judged, pipelines, file=file).rows
    assert [row.reason == "" for row in rows] == [True, False]
    batches = [batch for batch, _ in judged.batches]
    found = compare(dense, judged, pipelines, file=file, data=batches, progress=told.append).rows
    assert told == [f"pipeline 1 of 1: {pipelines[1]}"]
    assert any(row.notes for row in found)
    assert compare(dense, judged, pipelines, file=file, data=batches, progress=told.append).rows == found
    assert len(told) == 1


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("my notes\n", "this is no file of secateur compare"),
        ("# secateur comparison {}\nHEAD\n", "the settings cannot be read"),
        ("# secateur comparison GOOD\nHEAD\nprune,x,one,,,,,,\n", "this is no row: 'prune,x,one,,,,,,'"),
        ("# secateur comparison GOOD\nHEAD\nprune,x\n", "line 3"),
    ],
)
def test_other_files_are_left_alone(tmp_path: Path, content: str, error: str) -> None:
    dense, file = program(), tmp_path / "x.csv"
    good = '{"format": 1, "dense": {"top1": 1.0, "loss": 1.0, "entropy": 1.0}}'
    head = "series,pipeline,macs,params,top1,loss,seconds,reason,notes"
    text = content.replace("GOOD", good).replace("HEAD", head)
    file.write_text(text)
    with pytest.raises(OptionError, match=re.escape(error)):
        compare(dense, judge(dense), ["prune{ratio=0.5}"], file=file)
    assert file.read_text() == text


@pytest.mark.parametrize("labelled", [True, False])
def test_other_settings_and_other_images_are_refused(tmp_path: Path, labelled: bool) -> None:
    dense, file = program(), tmp_path / "x.csv"
    compare(dense, judge(dense, labelled=labelled), ["prune{ratio=0.5}"], file=file, about={"seed": 0})
    with pytest.raises(OptionError, match="seed was 0 and is 1"):
        compare(dense, judge(dense, labelled=labelled), ["prune{ratio=0.5}"], file=file, about={"seed": 1})
    given = images(labelled=labelled)
    twisted = tuple(replace(item, read=lambda item=item: -item.read()) for item in given.items)
    with pytest.raises(OptionError, match="measured on other images"):
        compare(dense, Judge(dense, replace(given, items=twisted)), ["prune{ratio=0.5}"], file=file, about={"seed": 0})


def rows(*pipelines: str) -> tuple[Row, ...]:
    dense = program()
    return compare(dense, judge(dense), pipelines).rows


def test_pipelines_that_differ_in_their_budgets_alone_are_one_series() -> None:
    found = rows("prune{macs=0.7}", "prune{params=0.5}", "prune{macs=0.5 scope=global},fold-bn", "prune{ratio=0.1}")
    assert {row.series for row in found} == {"prune", "prune{scope=global},fold-bn"}


@pytest.mark.parametrize(
    ("pipelines", "names"),
    [
        (grid(["l1", "fpgm"], ["global"], [0.5], "fold-bn"), {"l1 global", "fpgm global"}),
        (["prune{macs=0.5}", "prune{macs=0.5},fold-bn"], {"prune", "prune,fold-bn"}),
        (["prune{macs=0.5}", "prune{macs=0.5 criterion=l1}"], {"prune", "l1"}),
    ],
)
def test_the_legend_says_what_tells_series_apart(pipelines: list[str], names: set[str]) -> None:
    root = ElementTree.fromstring(plot(Comparison(DENSE, 10, True, rows(*pipelines)), "net"))
    assert {element.text for element in root.iter() if element.tag.endswith("title")} == names


def test_the_picture_leaves_out_what_failed() -> None:
    found = Comparison(DENSE, 10, False, (Row("prune", "prune{macs=0.01}", reason="no"),))
    root = ElementTree.fromstring(plot(found, "net"))
    assert not [element for element in root.iter() if element.tag.endswith("title")]
    assert "same top-1 as the dense model, %" in [element.text for element in root.iter()]


def test_the_study_of_the_example_measures_on_test_images_and_calibrates_on_others() -> None:
    model = inputs.load("digits")
    found = study(model, ["prune{macs=0.8 criterion=taylor}"], data="digits", limit=100, calibration_limit=32)
    opened = open_judged(model, "digits", limit=100, split="test")
    program = captured(model.module, 1, 1, 8, 8)
    assert (found.images, found.labelled, found.notes) == (100, True, ())
    assert found.rows[0].top1 is not None
    assert found.dense == Judge(program, opened.images, threads=1).dense
