"""What latencies look like on a terminal: a function that returns a renderable, and prints nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .bench import BenchReport, Profile, Ratio, Row
from .profile import milliseconds


def table(report: BenchReport) -> RenderableType:
    """Return what ``secateur bench`` shows: times, ratios to the original, what did not run, notes."""
    parts: list[RenderableType] = [_times(report.rows)]
    if report.refusals:
        parts.append(_refusals(report))
    parts += [_profile(profile) for profile in report.profiles]
    if report.notes:
        parts.append(Group(*(Text.assemble("  ", ("note", "cyan"), f"  {note}") for note in report.notes)))
    features = ", ".join(report.machine["features"]) or "no integer instructions"
    versions = ", ".join(f"{package} {version}" for package, version in report.versions.items())
    parts.append(Text(f"  {report.machine['name'] or report.machine['architecture']} ({features}); {versions}", "dim"))
    return Group(*(line for part in parts for line in (part, Text())))


def _times(rows: Sequence[Row]) -> RenderableType:
    shown = _table("backend", "threads", "batch", "model", "p50 ms", "p90 ms", "ratio", "quartiles", "rounds")
    for column in (1, 2, 4, 5, 6, 8):
        shown.columns[column].justify = "right"
    last = None
    for row in rows:
        where = row.setting
        # What is compared stands together, and says only once under which conditions.
        new = where != last
        last = where
        shown.add_row(
            Text(where.backend, "bold") if new else "",
            str(where.threads) if new else "",
            str(where.batch) if new else "",
            row.candidate,
            _milliseconds(row.p50),
            _milliseconds(row.p90),
            _ratio(row.ratio),
            Text(f"{row.ratio.lower:.2f} to {row.ratio.upper:.2f}" if row.ratio else "", "dim"),
            Text(str(row.rounds), "dim"),
        )
    return _indented(shown)


def _refusals(report: BenchReport) -> RenderableType:
    shown = _table("", "", "")
    shown.show_header = False
    for refusal in report.refusals:
        shown.add_row(Text("not run", "yellow"), f"{refusal.candidate} on {refusal.setting}", refusal.reason)
    return _indented(shown)


def _profile(profile: Profile) -> RenderableType:
    shown = _table("operations", "float32 ms", "int8 ms", "more ms", "number", "in float32", "slowest", "ms")
    for column in (1, 2, 3, 4, 5, 7):
        shown.columns[column].justify = "right"
    for kind in profile.blame.kinds:
        shown.add_row(
            kind.kind,
            milliseconds(kind.float_ms),
            milliseconds(kind.int8_ms),
            Text(
                f"{'+' * (kind.extra_ms >= 0)}{milliseconds(kind.extra_ms)}", "yellow" if kind.extra_ms > 0 else "green"
            ),
            f"{kind.float_count} -> {kind.int8_count}",
            str(kind.in_float),
            Text(kind.slowest, "dim"),
            Text(milliseconds(kind.slowest_ms) if kind.int8_count else "", "dim"),
        )
    title = f"{profile.candidate} and {profile.against} on {profile.setting}, operation by operation"
    return Group(
        Text(f"  {title}"), _indented(shown), Text.assemble("  ", ("why", "cyan"), f"  {profile.blame.sentence}")
    )


def _ratio(ratio: Ratio | None) -> Text:
    if ratio is None:
        return Text("")
    return Text(f"x{ratio.median:.2f}", "green" if ratio.upper < 1.0 else "yellow")


def _milliseconds(seconds: float) -> str:
    number = 1e3 * seconds
    return f"{number:.0f}" if number >= 1000 else f"{number:.3g}" if number >= 1 else f"{number:.3f}"


def _table(*headers: str) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for header in headers:
        made.add_column(header, overflow="fold")
    return made


def _indented(inner: Table) -> Padding:
    return Padding(inner, (0, 0, 0, 2), expand=False)
