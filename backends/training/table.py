"""What a training run gave, for a person to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from .chain import COLUMNS, cells


def table(report: Mapping[str, Any], directory: str) -> RenderableType:
    """Return the summary of a run.

    Args:
        report: The content of report.json.
        directory: Where the artefact stands.
    """
    run, after = report["training"], report["after"]
    data, before, best = run["data"], run["before"].get("top1"), run["best"]
    mean = f"mean of the last 5 epochs {run['mean_of_last_5']:.2f} %"
    rows = [
        ("data", f"{data['images']:,} images of {data['data']}, {data['test_images']:,} to test on"),
        ("before", f"top-1 {before:.2f} %" if before is not None else "not measured"),
        ("after", f"top-1 {run['top1']:.2f} %; {mean}"),
        ("best", f"top-1 {best['top1']:.2f} % after epoch {best['epoch']}" if best else "-"),
        ("methods", ", ".join(run["methods"]) or "none"),
        *_unused(data["classes"], run["outputs"]),
        ("size", f"{after['params']:,} parameters, {after['macs']:,} MACs"),
        ("written", directory),
    ]
    made = Table.grid(padding=(0, 2))
    for name, value in rows:
        made.add_row(f"  {name}", value)
    epochs = f"{run['epochs']} epoch{'s' * (run['epochs'] > 1)}"
    return Group(f"{report['name']}: trained for {epochs} in {run['seconds']:,.0f} s", made)


def _unused(classes: int, outputs: int) -> list[tuple[str, str]]:
    told = f"{outputs:,} for {classes:,} classes: --new-head gives the network as many as there are classes"
    return [("outputs", told)] if outputs > classes else []


def stages(results: Mapping[str, Any], directory: str) -> RenderableType:
    """Return the results of an experiment.

    Args:
        results: The content of results.json.
        directory: Where it stands.
    """
    first = results["stages"][0]
    made = Table(box=None, padding=(0, 2))
    for name in COLUMNS:
        made.add_column(name, justify="left" if name == "stage" else "right")
    for row in results["stages"]:
        made.add_row(*cells(row, first))
    asked = results["asked"]
    title = f"{asked['experiment']} ({results['model']}), epochs x {asked['scale']:g}; paper: {results['paper']}"
    return Group(title, made, f"  written  {directory}/results.md, results.json")
