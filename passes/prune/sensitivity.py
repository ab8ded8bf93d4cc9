"""Measured damage: what narrowing each group alone does to the loss, read from the CSV of ``secateur sensitivity``.

    damage(b, level) = share(b) * D(1 - level / levels)        share(b) = channels of b / channels of its group's blocks

D is the rise of the loss over the dense model's when this fraction of the group goes: 0 at 0, linear between what was
measured, never falling (a loss that sinks counts as none). Beyond the largest fraction measured it rises as steeply as
it last did, and at least as steeply as on the whole; and everywhere a little, so that nothing goes for free. Damages of
groups are taken to add up, as if groups did not depend on one another.

Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.2, whose curves per layer these are.

The file is CSV behind one line of JSON (``pandas.read_csv(..., comment="#")`` reads it):

    # secateur sensitivity {"format": 1, ..., "dense": {"top1": 99.1, "loss": 0.03}}
    group,ratio,width,kept,params,macs,top1,loss
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...compiler.dependency import ChannelDependencies, ChannelGroup
from ...compiler.errors import OptionError
from .selection import Selection

Floats = npt.NDArray[np.float64]

MARK: Final = "# secateur sensitivity "
FORMAT: Final = 1
_LEAST: Final = 1e-3
"""Damage of removing a whole group of which nothing was felt, relative to the mean of what was felt of any."""


@dataclass(frozen=True)
class Row:
    """One measurement: one group narrowed by one ratio, everything else left whole."""

    group: str
    ratio: float
    """Fraction of the channels that was to go."""
    width: int
    """Channels of the group."""
    kept: int
    """Channels that stayed."""
    params: float
    """Fraction of the network's parameters that stayed."""
    macs: float
    """Fraction of the network's multiply-accumulates that stayed."""
    top1: float
    """In percent: accuracy, or agreement with the dense model where there are no labels."""
    loss: float
    """In nats: cross-entropy, or the KL divergence from the dense model's outputs where there are no labels."""

    @property
    def line(self) -> str:
        """The row as it stands in the file, with its end of line."""
        return _csv(astuple(self))


@dataclass(frozen=True)
class Scan:
    """What a file holds."""

    settings: Mapping[str, Any]
    """What was measured, on what, and how; ``dense`` has the ``top1`` and ``loss`` of the dense model."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What passes refused while rows were measured; files do not hold it."""

    @property
    def dense_top1(self) -> float:
        """In percent."""
        return float(self.settings["dense"]["top1"])

    @property
    def dense_loss(self) -> float:
        """In nats."""
        return float(self.settings["dense"]["loss"])

    def by_group(self) -> dict[str, tuple[Row, ...]]:
        """Return the rows of each group in the order of their ratios; the group that does the most harm comes first.

        Harm is the mean rise of the loss over the ratios measured.
        """
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(row)
        harm = {group: float(np.mean([row.loss for row in rows])) for group, rows in found.items()}
        return {
            group: tuple(sorted(found[group], key=lambda row: row.ratio))
            for group in sorted(found, key=lambda group: -harm[group])
        }


def header(settings: Mapping[str, Any]) -> str:
    """Return the first two lines of a file."""
    return f"{MARK}{json.dumps(settings)}\n{_csv([column.name for column in fields(Row)])}"


def complete_lines(content: bytes) -> bytes:
    """Return a file without the half line that a killed run may have left at its end."""
    return content[: content.rfind(b"\n") + 1]


def read(file: str | Path) -> Scan:
    """Read a file. A half line at its end is left out.

    Raises:
        OptionError: There is no such file, or it is not one of ``secateur sensitivity``; names the line.
    """
    try:
        content = Path(file).expanduser().read_bytes()
    except OSError as error:
        raise OptionError(
            f"cannot read the sensitivities: {error.strerror}",
            where=str(file),
            hint="secateur sensitivity MODEL --data DIR -o FILE.csv measures them",
        ) from error
    return parse(complete_lines(content), str(file))


def parse(content: bytes, name: str) -> Scan:
    """Read the content of a file, whole lines.

    Raises:
        OptionError: It is not one of ``secateur sensitivity``; names the line.
    """
    lines = content.decode("utf-8", errors="replace").splitlines()
    names = [column.name for column in fields(Row)]
    if len(lines) < 2 or not lines[0].startswith(MARK) or lines[1].split(",") != names:
        raise OptionError(
            "this is no file of sensitivities",
            where=name,
            hint="secateur sensitivity MODEL --data DIR -o FILE.csv makes one; name another file",
        )
    settings: dict[str, Any] = {}
    try:
        settings = json.loads(lines[0].removeprefix(MARK))
        known = settings["format"] == FORMAT and all(float(settings["dense"][key]) >= 0 for key in ("top1", "loss"))
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise OptionError("the settings cannot be read", where=f"{name}, line 1", hint="measure again, to another file")
    rows = [_row(cells, f"{name}, line {number}") for number, cells in enumerate(csv.reader(lines[2:]), start=3)]
    return Scan(settings, tuple(rows))


def _row(cells: Sequence[str], where: str) -> Row:
    try:
        group, ratio, width, kept, *figures = cells
        row = Row(group, float(ratio), int(width), int(kept), *map(float, figures))
        sound = 0 <= row.kept <= row.width and bool(np.isfinite(astuple(row)[1:]).all())
    except (ValueError, TypeError) as error:
        raise _damaged(cells, where) from error
    if not sound:
        raise _damaged(cells, where)
    return row


def _damaged(cells: Sequence[str], where: str) -> OptionError:
    return OptionError(
        f"this is no measurement: {','.join(cells)!r}", where=where, hint="delete the line, and measure it again"
    )


def _csv(cells: Sequence[Any]) -> str:
    """Return a line of CSV; floats are written so that they read back as they are."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def damage_from(file: str | Path, deps: ChannelDependencies, selection: Selection) -> list[Floats]:
    """Return, per block, the measured damage at each of its levels: [levels + 1], index 0 unused.

    Args:
        file: Of ``secateur sensitivity``, for this model.
        deps: The analysis.
        selection: Blocks. Those that stay as they are need no measurements.

    Raises:
        OptionError: The file cannot be read, was measured on another model, or lacks groups; names them.
    """
    scan = read(file)
    rows = scan.by_group()
    _check_model(rows, deps, str(file))
    curves = {group.name: _curve(group, rows.get(group.name, ()), scan.dense_loss) for group in deps.groups}
    free = [
        group.name for group, allowed in zip(selection.group_of, selection.allowed, strict=True) if len(allowed) > 1
    ]
    missing = [name for name in dict.fromkeys(free) if len(curves[name][0]) < 2]
    if missing:
        raise OptionError(
            f"nothing was measured for {len(missing)} groups: {', '.join(missing[:6])}{' ...' * (len(missing) > 6)}",
            where=str(file),
            hint=f"secateur sensitivity MODEL --data DIR -o {file} goes on where it stopped; larger --ratios reach "
            "groups of few channels",
        )
    felt = [float(curve[1][-1]) for curve in curves.values() if len(curve[0]) > 1]
    least = _LEAST * (float(np.mean(felt)) if any(felt) else 1.0)
    found: list[Floats] = []
    for block, group in zip(selection.blocks, selection.group_of, strict=True):
        fraction = 1.0 - np.arange(block.levels + 1) / block.levels
        share = len(block.classes) / _channels(group)
        found.append(share * (_at(fraction, *curves[group.name]) + least * fraction))
    return found


def _check_model(rows: Mapping[str, Sequence[Row]], deps: ChannelDependencies, name: str) -> None:
    widths = {group.name: group.width for group in deps.groups}
    for group, measured in rows.items():
        if widths.get(group) != measured[0].width:
            has = f"has {widths[group]} channels" if group in widths else "is not there"
            raise OptionError(
                f"sensitivities of another model: group {group} had {measured[0].width} channels and {has}",
                where=name,
                hint="give the file that was measured on this model, before any other pass",
            )


def _channels(group: ChannelGroup) -> int:
    return sum(len(block.classes) for block in group.blocks)


def _curve(group: ChannelGroup, rows: Sequence[Row], dense: float) -> tuple[Floats, Floats]:
    """Return the fractions measured, rising from 0, and the damage at each, never falling."""
    damage = {row.width - row.kept: max(row.loss - dense, 0.0) for row in rows if row.kept < row.width}
    removed = sorted(damage)
    fractions = np.array([0, *removed], dtype=np.float64) / max(_channels(group), 1)
    return fractions, np.maximum.accumulate(np.array([0.0, *(damage[number] for number in removed)]))


def _at(wanted: Floats, fractions: Floats, damage: Floats) -> Floats:
    """Return the damage at other fractions: linear between those measured, and in a line beyond them."""
    if len(fractions) < 2:
        return np.zeros(len(wanted))
    slope = max((damage[-1] - damage[-2]) / (fractions[-1] - fractions[-2]), damage[-1] / fractions[-1])
    return np.interp(wanted, fractions, damage) + slope * np.maximum(wanted - fractions[-1], 0.0)
