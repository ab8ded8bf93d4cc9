"""What seeds.md says of the papers' experiments: means over seeds, the seeds' own tables, and what is claimed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from common import describe, table
from int8_accuracy import Check

LOST = 0.5
"""Points that the last stage may lose against the first, in the mean."""
HARD_AND_SOFT = (
    ("VGG16_bn", (("hard (no shortcuts)", "hard-vgg16"), ("soft (no shortcuts)", "soft-vgg16"))),
    (
        "ResNet-32",
        (
            ("hard, avoiding shortcuts", "hard-resnet32-avoiding"),
            ("hard, including shortcuts", "hard-resnet32-including"),
            ("soft, avoiding shortcuts", "soft-resnet32-avoiding"),
            ("soft, including shortcuts", "soft-resnet32-including"),
        ),
    ),
)
SLIMMING = (
    ("VGG-19", "slimming-vgg19"),
    ("ResNet-164", "slimming-resnet164"),
    ("DenseNet-40", "slimming-densenet40"),
)
COLUMNS = ("", "epochs", "parameters", "MACs", "file, KiB", "top-1 %", "against the original", "seeds")
Row = dict[str, Any]


def summarised(records: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Return experiment -> rows, a row per stage, with the figures of all seeds that have ended."""
    found: dict[str, list[list[Row]]] = {}
    for record in records.values():
        if record["finished"]:
            images = record["asked"]["images"]
            found.setdefault(record["experiment"], []).append([{**row, "images": images} for row in record["stages"]])
    return {name: [_over_seeds(stages) for stages in zip(*runs, strict=True)] for name, runs in found.items()}


def _over_seeds(rows: Sequence[Row]) -> Row:
    """Sizes are the means too: which channels go decides them, where the threshold is global."""
    mean = {key: round(statistics.fmean(row[key] for row in rows)) for key in ("params", "macs", "bytes")}
    same = [row["same_as_masked"] for row in rows if row["same_as_masked"]]
    return {
        "stage": rows[0]["stage"],
        "how": rows[0]["how"],
        "epochs": rows[0]["epochs"],
        "images": rows[0]["images"],
        **mean,
        "top1": [row["top1"] for row in rows],
        "same": sum(same),
        "last": [row["mean_of_last_5"] for row in rows if "mean_of_last_5" in row],
    }


def checks(records: Mapping[str, Any]) -> list[Check]:
    """Return what is claimed, and whether it holds."""
    found: list[Check] = []
    for name, rows in sorted(summarised(records).items()):
        first, last = rows[0], rows[-1]
        if first is not last:
            lost = statistics.fmean(first["top1"]) - statistics.fmean(last["top1"])
            told = f"{_spread(first['top1'])} -> {_spread(last['top1'])} %{_of_images(first)}"
            found.append(Check(f"{name} loses at most {LOST} points", lost <= LOST, told))
    return found


def _of_images(row: Row) -> str:
    return f", {row['images']:,} images" if row["images"] else ""


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _cells(title: str, row: Row, first: Row) -> list[str]:
    sizes = [f"{row[key]:,} ({row[key] / first[key]:.1%})" for key in ("params", "macs")]
    against = "" if row is first else f"{statistics.fmean(row['top1']) - statistics.fmean(first['top1']):+.2f}"
    count = str(len(row["top1"]))
    return [title, str(row["epochs"]), *sizes, f"{row['bytes'] / 1024:,.0f}", _spread(row["top1"]), against, count]


def _hard_and_soft(found: Mapping[str, Sequence[Row]]) -> list[str]:
    lines: list[str] = []
    for title, rows in HARD_AND_SOFT:
        shown: list[list[str]] = []
        first: Row = {}
        for text, name in rows:
            if name not in found:
                continue
            if found[name][0] != first:  # most begin with the same training
                first = found[name][0]
                shown.append(_cells(f"original{_of_images(first)}", first, first))
            shown.append(_cells(text, found[name][-1], first))
        if not shown:
            continue
        lines += [f"### {title}", "", *table(COLUMNS, shown), ""]
    if not lines:
        return []
    text = "Hard: pruned, then retrained for the epochs stated. Soft: from the trained network, for the epochs stated."
    return ["## Hard and soft filter pruning", "", text, "", *lines]


def _slimming(found: Mapping[str, Sequence[Row]]) -> list[str]:
    lines: list[str] = []
    names = {"dense": "base", "sparse": "sparse", "pruned": "pruned", "tuned": "fine-tuned"}
    for title, name in SLIMMING:
        if name in found:
            rows = found[name]
            shown = [_cells(names[row["stage"]], row, rows[0]) for row in rows]
            lines += [f"### {title}{_of_images(rows[0])}", "", *table(COLUMNS, shown), ""]
    return ["## Network slimming", "", *lines] if lines else []


def _runs(records: Mapping[str, Any]) -> list[str]:
    """Say how each experiment was run; those that were run together, once."""
    runs: dict[str, list[str]] = {}
    for record in records.values():
        if record["finished"]:
            runs.setdefault("\n".join(describe(record["run"])), []).append(record["experiment"])
    lines: list[str] = []
    for told, names in runs.items():
        lines += [f"{', '.join(sorted(set(names)))}:", "", *told.splitlines(), ""]
    return lines


def report(records: Mapping[str, Any]) -> list[str]:
    """Return seeds.md."""
    found = summarised(records)
    lines = ["# The papers' experiments, on JPEG files", "", *map(str, checks(records)), ""]
    lines += [
        "CIFAR-10 as strongly compressed JPEG files: accuracies compare with one another, not with the papers'. Top-1 "
        "is that of the last epoch; means and deviations over seeds. Reduced recipes end before the originals have "
        "learnt all they can, and what is pruned is trained on: part of what it gains is that.",
        "",
        *_hard_and_soft(found),
        *_slimming(found),
        "## All stages",
        "",
        "*predictions as masked*: the compact network predicts what the masked one does, for so many test images of "
        "all seeds; one that did not would have ended the experiment.",
        "",
    ]
    for name, rows in sorted(found.items()):
        record = next(r for r in records.values() if r["experiment"] == name)
        asked = record["asked"]
        images = f", {asked['images']:,} training images" if asked["images"] else ""
        changes = ", ".join(f"{key}={value}" for key, value in asked["changes"].items())
        if asked.get("later"):
            changes += "; after the first stage " + ", ".join(f"{k}={v}" for k, v in asked["later"].items())
        lines += [f"### {name} ({record['model']})", "", f"Paper: {record['paper']}.", ""]
        scale = f"epochs x {asked['scale']:g}, {asked['least_epochs']} at least"
        lines += [f"The paper's recipe with {scale}{images}{'; ' if changes else ''}{changes}.", ""]
        lines += ["; ".join(f"{row['stage']}: `{row['how']}`" for row in rows if row["how"]) + ".", ""]
        columns = (*COLUMNS, "mean of last 5", "predictions as masked")
        shown = [
            [
                *_cells(row["stage"], row, rows[0]),
                _spread(row["last"]) if row["last"] else "-",
                f"all {row['same']:,}" if row["same"] else "-",
            ]
            for row in rows
        ]
        lines += [*table(columns, shown), ""]
    shared = "Experiments that begin with the same training share its result, in whichever of these runs that was."
    return [*lines, "## How it was measured", "", shared, "", *_runs(records)]
