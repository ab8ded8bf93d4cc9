"""What a comparison of pipelines found, and the CSV file that holds it.

The file is CSV behind one line of JSON (``pandas.read_csv(..., comment="#")`` reads it). The first row is the dense
model's; the others are those of the pipelines, the most accurate first, those that failed last. ``notes`` is JSON:

    # secateur comparison {"format": 1, ..., "dense": {"top1": 99.1, "loss": 0.03, "entropy": 0.05}}
    series,pipeline,macs,params,top1,loss,seconds,reason,notes
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, Final

from ..compiler.errors import ArtefactError, OptionError
from .quality import Quality

MARK: Final = "# secateur comparison "
FORMAT: Final = 1
DENSE: Final = ("top1", "loss", "entropy")
"""What a file records of the dense model. By the entropy of its answers it is seen whether images are the same."""
_DENSE: Final = "dense"


@dataclass(frozen=True)
class Row:
    """What became of one pipeline. Figures are ``None`` if it could not be carried out."""

    series: str
    """The pipeline without its budgets."""
    pipeline: str
    macs: float | None = None
    """Fraction of the multiply-accumulates that stayed."""
    params: float | None = None
    """Fraction of the parameters that stayed."""
    top1: float | None = None
    """In percent: accuracy, or agreement with the dense model."""
    loss: float | None = None
    """In nats: cross-entropy, or KL divergence from the dense model."""
    seconds: float | None = None
    """That the passes took."""
    reason: str = ""
    """Why there are no figures."""
    notes: tuple[str, ...] = ()
    """What the passes had to say about the whole of it."""


@dataclass(frozen=True)
class Comparison:
    """All pipelines, the most accurate first, those that failed last."""

    dense: Quality
    images: int
    labelled: bool
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """What a reader of the figures has to know."""

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return asdict(self)

    def to_csv(self, settings: Mapping[str, Any]) -> str:
        """Return the content of a file.

        Args:
            settings: What was compared, on what, and how: JSON; ``dense`` has :data:`DENSE` of the dense model.
        """
        text = io.StringIO()
        text.write(f"{MARK}{json.dumps({'format': FORMAT, **settings})}\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        for row in (Row(_DENSE, "", 1.0, 1.0, self.dense.top1, self.dense.loss, 0.0), *self.rows):
            *cells, notes = astuple(row)
            writer.writerow(["" if cell is None else cell for cell in (*cells, json.dumps(notes) if notes else "")])
        return text.getvalue()


def write(content: str, file: Path) -> None:
    """Write a file, whole or not at all.

    Raises:
        ArtefactError: It cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(content, encoding="utf-8", newline="")
        partial.replace(file)
    except OSError as error:
        raise ArtefactError(f"cannot write: {error.strerror}", where=str(file)) from error


def read(file: Path) -> tuple[dict[str, Any], tuple[Row, ...]]:
    """Return the settings and the pipelines' rows of a file.

    Raises:
        OptionError: It is not one of ``secateur compare``, or is damaged; names the line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = [field.name for field in fields(Row)]
    if len(lines) < 2 or not lines[0].startswith(MARK) or lines[1].split(",") != names:
        raise OptionError("this is no file of secateur compare", where=str(file), hint="name another file")
    settings: dict[str, Any] = {}
    try:
        settings = json.loads(lines[0].removeprefix(MARK))
        known = settings.pop("format") == FORMAT and all(math.isfinite(settings["dense"][key]) for key in DENSE)
    except (ValueError, TypeError, KeyError, AttributeError):
        known = False
    if not known:
        raise OptionError("the settings cannot be read", where=f"{file}, line 1", hint="compare anew, to another file")
    reader = csv.reader(lines[2:])
    rows = [_row(cells, f"{file}, line {reader.line_num + 2}") for cells in reader]
    return settings, tuple(row for row in rows if row.series != _DENSE)


def _row(cells: list[str], where: str) -> Row:
    try:
        series, pipeline, *figures, reason, notes = cells
        macs, params, top1, loss, seconds = (float(cell) if cell else None for cell in figures)
        row = Row(series, pipeline, macs, params, top1, loss, seconds, reason, tuple(json.loads(notes or "[]")))
        sound = all(math.isfinite(f) for f in (macs, params, top1, loss, seconds) if f is not None)
    except (ValueError, TypeError):
        sound, row = False, None
    if row is None or not sound:
        raise OptionError(
            f"this is no row: {','.join(cells)!r}", where=where, hint="delete the line, and the pipeline is run again"
        )
    return row
