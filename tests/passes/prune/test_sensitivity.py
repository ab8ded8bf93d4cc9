"""Measured damage: the file, and what becomes of its rows per block and level."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.dependency import ChannelDependencies
from secateur.compiler.errors import OptionError
from secateur.passes.prune.selection import Limits, Selection
from secateur.passes.prune.sensitivity import Row, Scan, damage_from, header, read

SETTINGS = {"format": 1, "model": "small", "dense": {"top1": 90.0, "loss": 0.5}}
LEAST = 1e-3
"""Of the mean of the largest damages."""


class Net(nn.Module):
    """Two groups: ``a`` of eight channels in one block, ``b`` of four."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def analysed(module: nn.Module, *, frozen: str = "") -> tuple[ChannelDependencies, Selection]:
    deps = analyze(trace(module.eval(), torch.zeros(1, 3, 2, 2)))
    scores = np.ones(int(deps.class_of.max()) + 1)
    return deps, Selection(deps, scores, Limits(), lambda group: group.name == frozen)


def row(group: str, width: int, kept: int, loss: float) -> Row:
    return Row(group, 1 - kept / width, width, kept, 0.5, 0.25, 80.0, loss)


def written(path: Path, *rows: Row) -> Path:
    file = path / "found.csv"
    file.write_text(header(SETTINGS) + "".join(one.line for one in rows))
    return file


def damages(file: Path, module: nn.Module, *, frozen: str = "") -> dict[str, list[float]]:
    deps, selection = analysed(module, frozen=frozen)
    found = damage_from(file, deps, selection)
    assert [len(damage) for damage in found] == [block.levels + 1 for block in selection.blocks]
    return {group.name: damage.tolist() for group, damage in zip(selection.group_of, found, strict=True)}


def test_rows_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows = (row("a", 8, 6, 0.1 + 0.2), Row('od"d, name', 0.1, 3, 2, 1 / 3, 2 / 3, 12.5, 1e-17))
    assert read(written(tmp_path, *rows)) == Scan(SETTINGS, rows)


def test_the_half_line_of_a_killed_run_is_left_out(tmp_path: Path) -> None:
    file = written(tmp_path, row("a", 8, 6, 0.7), row("a", 8, 4, 0.8))
    file.write_bytes(file.read_bytes()[:-2])  # a number short of a digit is a number too
    assert [one.kept for one in read(file).rows] == [6]


def test_groups_come_in_the_order_of_their_harm(tmp_path: Path) -> None:
    rows = (row("mild", 8, 4, 0.6), row("bad", 8, 2, 3.0), row("bad", 8, 6, 0.5), row("worse", 8, 4, 2.0))
    groups = read(written(tmp_path, *rows)).by_group()
    assert list(groups) == ["worse", "bad", "mild"]
    assert [one.kept for one in groups["bad"]] == [6, 2]


def test_damage_is_the_rise_of_the_loss_interpolated(tmp_path: Path) -> None:
    file = written(tmp_path, row("a", 8, 6, 0.7), row("a", 8, 2, 1.5), row("b", 4, 2, 0.6))
    found = damages(file, Net())
    least = LEAST * (1.0 + 0.1) / 2
    # Levels 8 to 2: from 0 at full width over 0.2 at 6 to 1.0 at 2; below, on along the last line, 0.2 a channel.
    expected = [1.4, 1.2, 1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.0]
    assert found["a"] == pytest.approx([d + least * (1 - k / 8) for k, d in enumerate(expected)])
    assert found["b"][4] == 0.0
    assert found["b"][1] == pytest.approx(0.15 + least * 0.75)


def test_damage_never_falls_and_nothing_is_free(tmp_path: Path) -> None:
    rows = (row("a", 8, 7, 0.9), row("a", 8, 6, 0.6), row("a", 8, 4, 0.9), row("b", 4, 3, 0.4), row("b", 4, 2, 0.5))
    found = damages(written(tmp_path, *rows), Net())
    for damage in found.values():
        assert (np.diff(damage) < 0).all()
    assert found["a"][6] == pytest.approx(0.4, abs=2e-4)  # not the 0.1 that was measured there
    # Flat up to the last measurement; beyond it as steep as on the whole.
    assert found["a"][2] == pytest.approx(0.6, abs=2e-4)
    assert found["b"][2] == pytest.approx(LEAST * 0.2 * 0.5)


class Concatenated(nn.Module):
    """One group of two blocks: channels that two layers give side by side are told apart by who gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(3, 2, 1)
        self.d = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.a(x) + torch.cat([self.b(x), self.c(x)], 1))


def test_the_blocks_of_a_group_share_its_damage(tmp_path: Path) -> None:
    deps, selection = analysed(Concatenated())
    (group,) = {group.name: group for group in selection.group_of if group.prunable}.values()
    file = written(tmp_path, row(group.name, group.width, group.width // 2, 1.5))
    found = damage_from(file, deps, selection)
    parts = {len(block.classes): d for block, d in zip(selection.blocks, found, strict=True) if block in group.blocks}
    assert sorted(parts) == [2, 6]
    assert parts[6][3] == pytest.approx(1.0 * 6 / 8, rel=2e-3)
    assert parts[2][1] == pytest.approx(1.0 * 2 / 8, rel=2e-3)


def test_groups_that_are_not_in_the_file_are_named(tmp_path: Path) -> None:
    file = written(tmp_path, row("a", 8, 6, 0.7), row("b", 4, 4, 0.5))  # of b, nothing went
    with pytest.raises(OptionError, match="nothing was measured for 1 groups: b") as caught:
        damages(file, Net())
    assert "goes on where it stopped" in str(caught.value)
    assert damages(file, Net(), frozen="b")["b"] == pytest.approx([LEAST * 0.2 * (1 - k / 4) for k in range(5)])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("a", 9, 6, 0.7)], "group a had 9 channels and has 8 channels"),
        ([row("z", 8, 6, 0.7)], "group z had 8 channels and is not there"),
    ],
)
def test_files_of_other_models_are_refused(tmp_path: Path, rows: list[Row], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        damages(written(tmp_path, *rows), Net())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this is no file of sensitivities"),
        ("a,b\n1,2\n", "this is no file of sensitivities"),
        (header(SETTINGS).replace(",kept", ""), "this is no file of sensitivities"),
        (header({**SETTINGS, "format": 2}), "the settings cannot be read"),
        (header({"format": 1}), "the settings cannot be read"),
        (header(SETTINGS).replace('"format"', "format"), "the settings cannot be read"),
        (header(SETTINGS) + "a,0.5,8,4\n", "this is no measurement: 'a,0.5,8,4'\n  at: .*line 3"),
        (header(SETTINGS) + "a,0.5,8,4,1,1,50,high\n", "this is no measurement"),
        (header(SETTINGS) + "a,0.5,8,4,1,1,50,nan\n", "this is no measurement"),
        (header(SETTINGS) + "a,0.5,8,9,1,1,50,1.0\n", "this is no measurement"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "odd.csv"
    file.write_text(text)
    with pytest.raises(OptionError, match=message):
        read(file)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"No such file(.|\n)*secateur sensitivity"):
        read(tmp_path / "absent.csv")
