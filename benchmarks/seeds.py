"""The papers' experiments on CIFAR-10 as JPEG files, and their results in one table.

    python benchmarks/seeds.py --only 'hard-resnet32*,soft-resnet32*' --scale 0.1
    python benchmarks/seeds.py --only slimming-vgg19 --scale 0.05 -- --precision bf16-mixed

Needs the data folder (--data). What stands behind ``--`` goes to ``secateur experiment``, such as ``--weights FILE``.
Runs are kept in --work and continue there. Writes results/seeds.json and results/seeds.md; experiments that are not run
again keep their results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, describe, header, provenance, table, write_results
from int8_accuracy import ARCHIVES, Check, unpack

NAME = "seeds"
LOST = 0.5
"""Points that the last stage may lose against the first."""


def checks(records: Mapping[str, Any]) -> list[Check]:
    """Return what is claimed, and whether it holds."""
    found: list[Check] = []
    for name, record in sorted(records.items()):
        first, last = record["stages"][0], record["stages"][-1]
        if first is last or not record["finished"]:
            continue
        lost = first["top1"] - last["top1"]
        text = f"{first['top1']:.2f} -> {last['top1']:.2f} %"
        found.append(Check(f"{name} loses at most {LOST} points", lost <= LOST, text))
    return found


def report(head: Mapping[str, Any], records: Mapping[str, Any]) -> list[str]:
    """Return seeds.md."""
    from secateur.backends.training.chain import COLUMNS, cells

    lines = ["# The papers' experiments, on JPEG files", "", *describe(head), "", *map(str, checks(records)), ""]
    lines += [
        "CIFAR-10 as strongly compressed JPEG files: accuracies compare with one another, not with the papers'. "
        "*epochs*: of the recipe, scaled as stated. *predictions as masked*: the compact network predicts what the "
        "masked one does, for so many test images.",
        "",
    ]
    for name, record in sorted(records.items()):
        asked = record["asked"]
        images = f", {asked['images']:,} training images" if asked["images"] else ""
        changes = ", ".join(f"{key}={value}" for key, value in asked["changes"].items())
        lines += [f"## {name} ({record['model']})", "", f"Paper: {record['paper']}.", ""]
        lines += [f"Epochs x {asked['scale']:g}{images}, seed {asked['seed']}{'; ' if changes else ''}{changes}.", ""]
        first = record["stages"][0]
        rows = [cells(row, first) for row in record["stages"]]
        lines += [*table(COLUMNS, rows), ""]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="*", metavar="LIST", help="patterns of experiments")
    parser.add_argument("--scale", type=float, default=0.05, help="of the papers' epochs")
    parser.add_argument("--images", type=int, help="training images, by default all")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="archives of images")
    parser.add_argument("--work", type=Path, default=ROOT / "build/seeds", help="where runs are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    parser.add_argument("more", nargs="*", help="behind --: for `secateur experiment`")
    options = parser.parse_args()
    from secateur.backends.training.experiments import EXPERIMENTS

    names = [name for name in EXPERIMENTS if any(fnmatch(name, pattern) for pattern in options.only.split(","))]
    if not names or not all((options.data / name).exists() for name in ARCHIVES):
        print(f"needs in --data {', '.join(ARCHIVES)}, and a pattern that matches", file=sys.stderr)
        return 2
    head, path = header(2), options.out / f"{NAME}.json"
    records: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["records"] if path.exists() else {}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        images = unpack(options.data, Path(folder))
        link = options.work / "images"  # a name that stays the same, so that runs continue
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(images)
        for name in names:
            print(name, file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "secateur", "experiment", name, "--data", str(link), *options.more]
            command += ["--scale", str(options.scale), "-o", str(options.work / name)]
            command += ["--images", str(options.images)] if options.images else []
            failed += bool(subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode)
            results = options.work / name / "results.json"
            if results.exists():
                record = json.loads(results.read_text(encoding="utf-8"))
                record["asked"].pop("data")
                records[name] = {**record, **provenance()}
                write_results(options.out, NAME, {**head, "records": records}, report(head, records))
        link.unlink()
    verdict = checks(records)
    print("\n".join(map(str, verdict)))
    return int(failed > 0 or not all(check.holds for check in verdict))


if __name__ == "__main__":
    sys.exit(main())
