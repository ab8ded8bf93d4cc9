"""What scans and comparisons look like on a terminal: functions that return renderables, and print nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..passes.prune.sensitivity import Row, Scan
from .comparison import Comparison
from .scores import LOW, Ranking, steepest
from .tables import LONGEST


def sensitivities(found: Scan) -> RenderableType:
    """Return what ``secateur sensitivity`` shows: groups, the most harmful first, and what each ratio does to top-1."""
    groups = found.by_group()
    ratios = sorted({row.ratio for row in found.rows})
    table = _table(
        "channels of", "width", *(f"-{100 * ratio:g}%" for ratio in ratios), "loss", "MACs", left=1, fold="channels of"
    )
    for name, rows in list(groups.items())[:LONGEST]:
        by_ratio = {row.ratio: row for row in rows}
        last = rows[-1]
        table.add_row(
            name,
            str(last.width),
            *(_change(by_ratio.get(ratio), found.dense_top1) for ratio in ratios),
            f"{last.loss - found.dense_loss:+.3f}",
            f"-{100 * (1 - last.macs):.1f}%",
        )
    images, loss = found.settings.get("images"), found.settings.get("loss", "loss")
    dense = f"dense model: top-1 {found.dense_top1:.2f}%, {loss} {found.dense_loss:.4f}, on {images:,} images"
    legend = "top-1 in points when so many channels of one group go; loss and MACs: of the last column"
    lines = [dense, legend]
    if found.settings.get("unlabelled"):
        lines.append(f"without labels ({found.settings['unlabelled']}): compared with the dense model's own answers")
    if "retrain" in found.settings:
        how = found.settings["retrain"]
        length = "1 epoch" if how["epochs"] == 1 else f"{how['epochs']} epochs"
        images = f"{how['images']:,} other images"
        lines.append(f"each network was trained for {length} on {images}, the dense model was not")
    lines += found.notes
    if len(groups) > LONGEST:
        lines.append(f"{len(groups) - LONGEST} less sensitive groups are left out; the file has them")
    return _with_notes(table, lines)


def _change(row: Row | None, dense: float) -> Text:
    if row is None:
        return Text("")
    if row.kept == row.width:
        return Text("none go", "dim")
    change = row.top1 - dense
    return Text(f"{change:+.2f}", "green" if change > -0.5 else "yellow" if change > -5 else "red")


def comparison(found: Comparison) -> RenderableType:
    """Return what ``secateur compare`` shows: pipelines, the most accurate first, then those that failed and why."""
    table = _table("pipeline", "MACs", "params", "top-1", "change", "loss", "seconds", left=1, fold="pipeline")
    table.add_row(
        Text("dense", "bold"), "100.0%", "100.0%", f"{found.dense.top1:.2f}%", "", f"{found.dense.loss:.4f}", ""
    )
    failed = [row for row in found.rows if row.top1 is None]
    for row in found.rows:
        if row.top1 is None or row.macs is None or row.params is None:
            continue
        change = row.top1 - found.dense.top1
        table.add_row(
            row.pipeline,
            f"{100 * row.macs:.1f}%",
            f"{100 * row.params:.1f}%",
            f"{row.top1:.2f}%",
            Text(f"{change:+.2f}", "green" if change > -0.5 else "yellow"),
            f"{row.loss:.4f}",
            f"{row.seconds:.1f}",
        )
    lines = [f"{found.images:,} images: one of them is {100 / found.images:.2f} points of top-1", *found.notes]
    lines += [f"{row.pipeline}: {note}" for row in found.rows for note in row.notes]
    parts: list[RenderableType] = [_with_notes(table, lines)]
    if failed:
        refused = _table("", "", "", left=3, fold="")
        refused.show_header = False
        for row in failed:
            refused.add_row(Text("failed", "yellow"), row.pipeline, row.reason)
        parts += [Padding(refused, (0, 0, 0, 2), expand=False), Text()]
    return Group(*parts)


def rankings(found: Sequence[Ranking]) -> RenderableType:
    """Return what ``secateur scores`` shows: groups, those whose scores fall most steeply first."""
    table = _table("channels of", "width", "largest", "median", "smallest", "low", left=1, fold="channels of")
    for ranking in steepest(found)[:LONGEST]:
        relative = ranking.relative
        table.add_row(
            ranking.group,
            str(len(relative)),
            f"{ranking.scores[0]:.3g}",
            f"{relative[len(relative) // 2]:.3f}",
            f"{relative[-1]:.3f}",
            f"{sum(r < LOW for r in relative)}",
        )
    lines = [f"median and smallest: of the group's largest score; low: channels below {LOW:g} of it"]
    if len(found) > LONGEST:
        lines.append(f"{len(found) - LONGEST} groups whose scores are more alike are left out; -o FILE.csv has them")
    return _with_notes(table, lines)


def _table(*headers: str, left: int, fold: str) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for place, header in enumerate(headers):
        made.add_column(header, justify="left" if place < left else "right", overflow="fold", no_wrap=header != fold)
    return made


def _with_notes(table: Table, notes: Sequence[str]) -> RenderableType:
    lines = Text("\n".join(notes), "dim")
    return Group(Padding(table, (0, 0, 0, 2), expand=False), Text(), Padding(lines, (0, 0, 0, 2), expand=False), Text())
