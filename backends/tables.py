"""What results look like on a terminal: functions that return renderables, and print nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

LONGEST: Final = 24
"""Groups that are shown one by one; more are put together where they have the same widths."""
_BAR: Final = 20
_REMARKS: Final = 6


def compilation(
    report: Mapping[str, Any], plan: Mapping[str, Any], directory: str, seconds: float, *, ascii_only: bool = False
) -> RenderableType:
    """Return what ``secateur compile`` shows: widths, costs, proof, remarks, files, next steps."""
    sign = _Signs(ascii_only)
    parts: list[RenderableType] = [
        Text.assemble((report["name"], "bold"), "  ", (report["pipeline"] or "no passes", "cyan")),
        _widths(plan["groups"], sign),
        _costs(report, sign),
        *_checks(report["verification"]),
        *_regions(report.get("regions")),
        *_remarks(report),
        _files(report.get("files", {}), directory, seconds),
        _next_steps(report, directory),
    ]
    return Group(*(line for part in parts for line in (part, Text())))


def verification(directory: str, tensors: int, found: Mapping[str, Any]) -> RenderableType:
    """Return what ``secateur verify`` shows."""
    drift = found.get("drift")
    if drift is None:
        title = Text.assemble((directory, "bold"), f" is proven: all {tensors} tensors are what they should be")
        return Group(title, *_checks(found))
    title = Text.assemble(
        (directory, "bold"),
        f" holds: {tensors - drift['tensors']} of {tensors} tensors are what they should be, the others as nearly as "
        "fitting again tells",
    )
    off = f"outputs differ by {drift['distance']:.2g} of their size, and are {drift['error']:.2g} off the original's"
    fitted = Text("fitted again", "yellow")
    return Group(title, *_checks(found), _fact(fitted, Text("with other threads or on another machine"), Text(off)))


class _Signs:
    def __init__(self, ascii_only: bool) -> None:
        self.full, self.empty, self.arrow = ("#", ".", "->") if ascii_only else ("█", "░", "→")

    def bar(self, kept: float) -> Text:
        filled = round(kept * _BAR)
        return Text.assemble((self.full * filled, "green"), (self.empty * (_BAR - filled), "dim"))


def _widths(groups: Sequence[Mapping[str, Any]], sign: _Signs) -> RenderableType:
    rows = [_Row([g]) for g in groups] if len(groups) <= LONGEST else _merged(groups)
    table = _table("channels of", "layers", "before", "", "after", "kept", "")
    for column in (1, 2, 4, 5):
        table.columns[column].justify = "right"
    table.columns[0].no_wrap, table.columns[-1].no_wrap = False, True  # long names fold, and not the bars
    shown = rows[:LONGEST]
    for row in shown:
        kept = row.after / max(row.before, 1)
        table.add_row(
            row.name, str(row.layers), str(row.before), sign.arrow, str(row.after), _percent(kept), sign.bar(kept)
        )
    notes: list[str] = []
    if len(rows) < len(groups):
        notes.append(f"{len(groups)} groups; those of the same widths stand together.")
    if len(shown) < len(rows):
        notes.append(f"{len(rows) - len(shown)} more rows are left out.")
    if not notes:
        return _indented(table)
    return Group(
        _indented(table), Text(f"  {' '.join(notes)} All of them: report.json (layers), plan.json (groups).", "dim")
    )


class _Row:
    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        first = groups[0]
        more = len(groups) - 1
        self.name = str(first["name"]) + (f" and {more} more" if more else "")
        self.layers = sum(len(g["layers"]) for g in groups)
        self.before, self.after = int(first["before"]), int(first["after"])


def _merged(groups: Sequence[Mapping[str, Any]]) -> list[_Row]:
    same: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for group in groups:
        same.setdefault((group["before"], group["after"]), []).append(group)
    return [_Row(members) for members in same.values()]


def _costs(report: Mapping[str, Any], sign: _Signs) -> RenderableType:
    before, after, kept = report["before"], report["after"], report["kept"]
    table = _table("", "before", "", "after", "kept", "")
    for column in (1, 3, 4):
        table.columns[column].justify = "right"
    for name, key, write in (("parameters", "params", count), ("MACs", "macs", count), ("weights file", "bytes", size)):
        table.add_row(
            name, write(before[key]), sign.arrow, write(after[key]), _percent(kept[key], 1), sign.bar(kept[key])
        )
    accuracy = report["accuracy"]
    if accuracy is not None:
        was, now = accuracy["before"], accuracy["after"]
        note = f"on {accuracy['data']} ({accuracy['images']})"
        table.add_row(
            "top-1 accuracy", f"{was:.2f}%", sign.arrow, f"{now:.2f}%", f"{now - was:+.2f}", Text(note, "dim")
        )
    return _indented(table)


def _checks(verification: Mapping[str, Any] | None) -> list[RenderableType]:
    if verification is None:
        return [_fact(Text("checked", "yellow"), Text("not at all: --no-verify was given", "yellow"))]
    return [check for stretch in verification["stretches"] for check in _check(stretch, verification["tolerance"])]


_CLAIMS: Final = {
    "masked": "equal to the masked original: relative difference",
    "exact": "equal to what it was made from: relative difference",
}


def _check(stretch: Mapping[str, Any], tolerance: float) -> list[RenderableType]:
    passes = Text(", ".join(stretch["passes"]), "dim")
    if "measured" in stretch:
        return [_fact(Text("measured", "yellow"), *map(Text, _figures(stretch["measured"])), passes)]
    deciding = [trial for trial in stretch["trials"] if trial["decides"]]
    batches = " and ".join(dict.fromkeys(" + ".join("x".join(map(str, s)) for s in t["shapes"]) for t in deciding))
    lines = [Text(f"{_CLAIMS[stretch['contract']]} {stretch['error']:.1e}, allowed {tolerance:.0e}")]
    if stretch["passes"]:
        lines.append(passes)
    lines.append(Text(f"float64, random batches of {batches}", "dim"))
    if len(deciding) < len(stretch["trials"]):
        lines.append(Text("Its own weights amplify rounding errors too much to decide; drawn ones did.", "yellow"))
    if stretch["vacuous"]:
        lines.append(Text("The original gives the same output for every input, so this says little.", "yellow"))
    return [_fact(Text("proven", "green"), *lines)]


_FIGURES: Final = (
    {
        "sqnr_db": "signal to noise of the output {:.1f} dB",
        "same_top1": "the same top-1 for {:.1%} of the calibration inputs",
    },
    {
        "int8_macs": "{:.1%} of the MACs in int8",
        "int8": "{} operations in int8",
        "float": "{} in float",
    },
)


_CHANGES: Final = {
    "output_error": "relative error of the output {:.3f} -> {:.3f}",
    "agreement": "the same top-1 as the dense network {:.1%} -> {:.1%}",
}
"""Figures that are measured before and after."""


def _figures(measured: Mapping[str, Any]) -> list[str]:
    lines = [[t.format(measured[name]) for name, t in line.items() if name in measured] for line in _FIGURES]
    pairs = {name: (measured.get(f"{name}_before"), measured.get(f"{name}_after")) for name in _CHANGES}
    lines.append([_CHANGES[name].format(*pair) for name, pair in pairs.items() if None not in pair])
    return [", ".join(line) for line in lines if line]


def _remarks(report: Mapping[str, Any]) -> list[RenderableType]:
    found = [(r["kind"], r["node"], r["reason"]) for r in report["remarks"] if r["kind"] != "applied"]
    found += [("note", "", note) for note in report["notes"]]
    if not found:
        return []
    table = _table("", "", "")
    table.show_header = False
    for kind, node, reason in found[:_REMARKS]:
        table.add_row(Text(kind, "yellow" if kind == "missed" else "cyan"), node, reason)
    if len(found) > _REMARKS:
        table.add_row("", "", Text(f"{len(found) - _REMARKS} more remarks: report.json", "dim"))
    return [_indented(table)]


def _regions(regions: Mapping[str, Any] | None) -> list[RenderableType]:
    """Say what of a model was pruned that is Python code around networks."""
    if regions is None:
        return []
    lines = [Text(", ".join(name or "the whole model" for name in regions["regions"]))]
    if regions["contracts"]:
        lines.append(Text(f"coupled by {', '.join(regions['contracts'])}", "dim"))
    lines.append(Text(f"Python code reads {len(regions['borders'])} tensors of theirs, whose channels stay", "dim"))
    graphs = regions["rewritten"]
    if graphs:
        lines.append(Text(f"{', '.join(graphs)}: the graph runs in place of code that counts on what was there", "dim"))
    lines.append(Text(f"run in the model, relative difference to what was proven {regions['agreement']:.1e}", "dim"))
    lines += [Text(f"{path} stays as it is: {reason}", "yellow") for path, reason in regions["outside"].items()]
    return [_fact(Text("networks"), *lines)]


def _files(files: Mapping[str, int], directory: str, seconds: float) -> RenderableType:
    listed = "".join(f"{name} ({size(number)}), " for name, number in files.items())
    where = Text.assemble((directory, "bold"), f" in {seconds:.1f} s")
    return _fact(Text("written"), where, Text(f"{listed}report.json", "dim"))


def _next_steps(report: Mapping[str, Any], directory: str) -> RenderableType:
    quoted = f"'{directory}'" if " " in directory else directory
    steps = [(f"cat {quoted}/report.json", "all figures")]
    if "model.py" in report.get("files", {}):
        needs = "run it on a random input; needs only torch"
        if "regions" in report:
            needs = "run it on random images; needs the code that the model comes from, as its first lines say"
        steps = [
            (f"python {quoted}/model.py", needs),
            (f"secateur verify {quoted}", "prove it again from the files"),
        ]
    table = Table.grid(padding=(0, 3, 0, 0))
    for step, meaning in steps:
        table.add_row(step, Text(meaning, "dim"))
    return _fact(Text("next"), table)


def _fact(title: Text, *lines: RenderableType) -> RenderableType:
    """Return a title with lines beside it."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=8)
    table.add_row(title, Group(*lines))
    return _indented(table)


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for index, header in enumerate(headers):
        table.add_column(header, overflow="fold", no_wrap=index == 0)
    return table


def _indented(table: Table) -> Padding:
    return Padding(table, (0, 0, 0, 2), expand=False)


def _percent(fraction: float, digits: int = 0) -> str:
    return f"{100 * fraction:.{digits}f}%"


def count(number: int) -> str:
    """Write a number for a person: 1.81 G, 11.7 M."""
    return _scaled(number, (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)), "")


def size(number: int) -> str:
    """Write a number of bytes for a person: 46.8 MB."""
    return _scaled(number, (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)), "B")


def _scaled(number: int, units: Iterable[tuple[str, int]], smallest: str) -> str:
    for unit, scale in units:
        if number >= scale:
            return f"{number / scale:.3g} {unit}" if number < 1000 * scale else f"{number / scale:.0f} {unit}"
    return f"{number} {smallest}".rstrip()
