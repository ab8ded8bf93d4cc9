"""Scans: rows are what prune makes, files are resumed and never mixed up, and pictures have a line per group."""

from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from secateur.backends import inputs
from secateur.backends.compile import equip
from secateur.backends.quality import Judge, Quality
from secateur.backends.sensitivity import plot, scan, study
from secateur.compiler.cost import measure
from secateur.compiler.errors import OptionError
from secateur.compiler.program import Program
from secateur.passes.pipeline import PassPipeline
from secateur.passes.prune.prune import Prune
from secateur.passes.prune.sensitivity import Row, Scan, read
from support.judged import judge, program
from support.small import captured


class Counting(Judge):
    """Knows how often it was asked."""

    asked = 0

    def __call__(self, program: Program, what: str = "") -> Quality:
        self.asked += 1
        return super().__call__(program, what)


def counting(dense: Program) -> Counting:
    return Counting(dense, judge(dense).images, keep=True, threads=1)


@pytest.mark.parametrize("criterion", ["l2", "random", "taylor"])
def test_a_row_is_what_pruning_one_group_gives(tmp_path: Path, criterion: str) -> None:
    dense = program()
    judged = judge(dense)
    found = scan(dense, judged, tmp_path / "x.csv", ratios=[0.25, 0.5], criterion=criterion, seed=3)
    assert [(row.group, row.ratio, row.width) for row in found.rows] == [
        ("stem", 0.25, 8), ("stem", 0.5, 8), ("inner", 0.25, 6), ("inner", 0.5, 6),
    ]  # fmt: skip
    for row in found.rows:
        data = [(batch, labels) for batch, labels in judged.batches if labels is not None]
        pruned = Prune(layers={row.group: row.ratio}, criterion=criterion, seed=3, data=data).run(dense).program
        assert (row.top1, row.loss) == (judged(pruned).top1, judged(pruned).loss)
        assert row.macs == measure(pruned).macs / measure(dense).macs
        assert row.params == measure(pruned).params / measure(dense).params
    assert found == read(tmp_path / "x.csv")
    assert (found.dense_top1, found.dense_loss) == (judged.dense.top1, judged.dense.loss)


def test_a_scan_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    dense, whole, file = program(), tmp_path / "whole.csv", tmp_path / "killed.csv"
    scan(dense, judge(dense), whole)

    def kill(text: str) -> None:
        if "3 of 8 measurements left" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(dense, judge(dense), file, progress=kill)
    lines = whole.read_bytes().splitlines(keepends=True)
    assert file.read_bytes() == b"".join(lines[:7])
    file.write_bytes(file.read_bytes() + lines[7][:-3])
    texts: list[str] = []
    judged = counting(dense)
    scan(dense, judged, file, progress=texts.append)
    assert file.read_bytes() == whole.read_bytes()
    assert texts[-3:] == [f"inner at {r}: {n} of 8 measurements left" for r, n in ((0.25, 3), (0.5, 2), (0.75, 1))]
    assert judged.asked == 3
    scan(dense, judged, file)
    assert judged.asked == 3


@pytest.mark.parametrize("left", [0, 10, 40, 800])
def test_a_scan_that_was_killed_at_once_begins_anew(tmp_path: Path, left: int) -> None:
    dense, file = program(), tmp_path / "x.csv"
    whole = scan(dense, judge(dense), file, ratios=[0.5])
    content = file.read_bytes()
    file.write_bytes(content[: min(left, content.index(b"\n"))])
    assert scan(dense, judge(dense), file, ratios=[0.5]) == whole
    assert file.read_bytes() == content


def test_other_ratios_are_added(tmp_path: Path) -> None:
    dense, file = program(), tmp_path / "x.csv"
    scan(dense, judge(dense), file, ratios=[0.5])
    found = scan(dense, judge(dense), file, ratios=[0.25, 0.5])
    assert Counter(row.ratio for row in found.rows) == {0.25: 2, 0.5: 2}
    assert read(file) == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "l1"}, "criterion was l2 and is l1"),
        ({"behind": "reestimate-bn"}, "behind was nothing and is reestimate-bn"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"about": {"model": "another"}}, "model was small and is another"),
        ({"about": {}}, "model was small and is nothing"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    dense, file = program(), tmp_path / "x.csv"
    scan(dense, judge(dense), file, ratios=[0.5], about={"model": "small"})
    content = file.read_bytes()
    changed: dict[str, Any] = {"ratios": [0.5], "about": {"model": "small"}, **options}
    with pytest.raises(OptionError, match=message):
        scan(dense, judge(dense), file, **changed)
    assert file.read_bytes() == content


def test_other_weights_and_other_images_are_refused(tmp_path: Path) -> None:
    dense, file = program(), tmp_path / "x.csv"
    scan(dense, judge(dense), file, ratios=[0.5])
    changed = program()
    with torch.no_grad():
        changed.attribute("fc.bias").add_(1e-3)
    with pytest.raises(OptionError, match="weights_sha256 was"):
        scan(changed, judge(changed), file, ratios=[0.5])
    with pytest.raises(OptionError, match=r"loss was cross-entropy and is KL.*images_sha256 was"):
        scan(dense, judge(dense, labelled=False), file, ratios=[0.5])


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    for content in ("my,own\n1,2\n", "a note without an end of line"):
        file.write_text(content)
        with pytest.raises(OptionError, match="no file of sensitivities"):
            scan(program(), judge(program()), file)
        assert file.read_text() == content


def test_passes_behind_run_and_costs_are_those_of_the_narrow_model(tmp_path: Path) -> None:
    dense = program()
    judged = judge(dense)
    plain = scan(dense, judged, tmp_path / "a.csv", ratios=[0.5])
    behind = scan(dense, judged, tmp_path / "b.csv", ratios=[0.5], behind="reconstruct")
    assert behind.settings["behind"] == "reconstruct"
    assert [row.macs for row in behind.rows] == [row.macs for row in plain.rows]
    data = [(batch, labels) for batch, labels in judged.batches]
    passes = equip(PassPipeline.parse("prune{layers=inner:0.5},reconstruct"), data, lambda text: None)
    assert behind.rows[1].loss == judged(passes.run(dense).program).loss != plain.rows[1].loss


def test_what_passes_behind_refuse_is_said(tmp_path: Path) -> None:
    dense = program()
    found = scan(dense, judge(dense), tmp_path / "x.csv", behind="reestimate-bn")
    assert found.notes == ("reestimate-bn: no batch norm stands behind pruned channels (behind stem, inner)",)


def test_ratios_that_come_to_one_width_are_measured_once(tmp_path: Path) -> None:
    dense = program()
    judged = counting(dense)
    found = scan(dense, judged, tmp_path / "x.csv", ratios=[0.05, 0.5, 0.51])
    assert judged.asked == 2
    assert [row.kept for row in found.rows] == [8, 4, 4, 6, 3, 3]
    assert (found.rows[0].loss, found.rows[0].macs) == (judged.dense.loss, 1.0)
    assert found.rows[1].loss == found.rows[2].loss


def test_without_labels_the_dense_model_is_the_measure(tmp_path: Path) -> None:
    dense = program()
    found = scan(dense, judge(dense, labelled=False), tmp_path / "x.csv", ratios=[0.5])
    assert (found.dense_top1, found.dense_loss) == (100.0, 0.0)
    assert all(row.loss > 0 for row in found.rows)


def test_mistakes_leave_no_file(tmp_path: Path) -> None:
    dense, file = program(), tmp_path / "x.csv"
    with pytest.raises(OptionError, match="the ratio 1 is out of range"):
        scan(dense, judge(dense), file, ratios=[0.5, 1.0])
    with pytest.raises(OptionError, match="unknown criterion 'l3'"):
        scan(dense, judge(dense), file, criterion="l3")
    fixed = captured(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    with pytest.raises(OptionError, match="no group of channels can be pruned"):
        scan(fixed, judge(fixed), file)
    assert not file.exists()


def test_the_study_of_the_example_uses_training_images(tmp_path: Path) -> None:
    found = study(inputs.load("digits"), tmp_path / "x.csv", name="digits", data="digits", limit=20, ratios=[0.5])
    assert len(found.rows) == 9
    assert (found.settings["model"], found.settings["images"], found.settings["unlabelled"]) == ("digits", 20, "")
    train = Judge(captured(inputs.load("digits").module, 1, 1, 8, 8), _training(20), keep=True)
    assert found.settings["images_sha256"] == train.checksum()


def _training(count: int) -> Any:
    from secateur.compiler.data.images import default_preprocess, open_images

    how = default_preprocess("digits", spec=None, input_shape=(1, 1, 8, 8))
    return open_images("digits", preprocess=how, labelled=True, limit=count, split="train")


def test_the_picture_has_a_line_per_group_and_colours_the_worst() -> None:
    rows = tuple(
        Row(f"layer{number}", ratio, 8, kept, 0.9, 0.9, 90.0 - number, 0.1 * number)
        for number in range(15)
        for ratio, kept in ((0.25, 6), (0.5, 4))
    )
    settings = {"format": 1, "model": "net", "loss": "cross-entropy", "dense": {"top1": 95.0, "loss": 0.0}}
    root = ElementTree.fromstring(plot(Scan(settings, rows)))
    text = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert text[0] == "net: one group of channels narrowed at a time"
    assert {"top-1 accuracy, %", "cross-entropy, nats", "layer14", "layer3", "3 more"} <= set(text)
    assert "layer2" not in text
    titles = Counter(element.text for element in root.iter() if element.tag.endswith("title"))
    assert titles == {f"layer{number}": 2 for number in range(15)}
