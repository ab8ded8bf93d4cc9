"""Top-1 of int8 networks: secateur's, ONNX Runtime's (quantize_static) and NNCF's, on the same calibration images.

    python benchmarks/int8_accuracy.py                          # six CIFAR ResNets, three calibration seeds
    python benchmarks/int8_accuracy.py --only '*20*' --seeds 1  # some; the results of the others stay
    python benchmarks/int8_accuracy.py --resume                 # what an interrupted run left

Needs the data folder (--data): trained CIFAR ResNets, and CIFAR-10 as JPEG files; and NNCF (`pip install nncf`). Each
model runs in a process of its own (int8_accuracy_worker.py). Writes results/int8_accuracy.json and
results/int8_accuracy.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from common import (
    RESULTS,
    ROOT,
    Json,
    cifar_files,
    describe,
    header,
    portable,
    provenance,
    single_threaded,
    table,
    write_results,
)
from int8_accuracy_worker import DEFAULT, ENGINES, MINMAX, NNCF, PIPELINES, STATIC

NAME = "int8_accuracy"
WORKER = Path(__file__).with_name(f"{NAME}_worker.py")
ARCHIVES = ("cifar10-jpeg-train.tar.gz", "cifar10-jpeg-test.tar.gz")
ALLOWED_DROP = 0.3
"""Points of top-1 that int8 may cost."""

LEGEND = """\
CIFAR ResNets with trained weights, on the {images:,} test images of CIFAR-10 as strongly compressed JPEG files
(*_jpeg*: adapted to such files; the others as published, for which these are foreign images). Batch norms are folded;
ranges come from {count} training images, as many of each class, chosen by {seeds} seeds; every method gets the same.

- *{DEFAULT}*: `{default}`; *{MINMAX}*: `{minmax}`.
  The same programs in torch (integers simulated in float32), in ONNX Runtime and in OpenVINO.
- *{STATIC}*: ONNX Runtime's own tool on the folded network's ONNX file, after quant_pre_process: QDQ, uint8
  activations, int8 weights per channel, with its calibration methods as they come. (Entropy is not run: by default it
  has as many bins as integers, and so gives the ranges of MinMax.)
- *{NNCF}*: `nncf.quantize` with its defaults, on the same file and, one by one, the same images.
- *top-1*: percent, mean over the seeds, and the lowest and highest of them.
- *minus fp32*, *secateur minus this*: points, with the standard error that comes from the choice of test images. It is
  paired: both classified the same images, and those they agree on are no noise. Below twice that, a difference says
  nothing. One image is {one:.2f} points."""


@dataclass(frozen=True)
class Check:
    """One claim."""

    claim: str
    holds: bool
    found: str

    def __str__(self) -> str:
        """Return a line of Markdown."""
        return f"- **{'yes' if self.holds else 'NO'}**: {self.claim} ({self.found})"


def unpack(data: Path, folder: Path) -> Path:
    """Unpack the images; return the folder with train/ and test/."""
    for name in ARCHIVES:
        with tarfile.open(data / name) as archive:
            archive.extractall(folder, filter="data")
    return folder / "cifar10"


def run_one(name: str, images: Path, options: argparse.Namespace) -> Json:
    """Run the worker for one model; whatever becomes of it, a record comes back."""
    command = [sys.executable, str(WORKER), name, "--images", str(images), "--data", str(options.data)]
    command += ["--seeds", str(options.seeds), "--count", str(options.count), "--engines", *options.engines]
    command += ["--static", *options.static]
    record: Json = {}
    stage = "start"
    with (
        tempfile.TemporaryFile("w+") as errors,  # a pipe that nobody reads meanwhile might fill up
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=single_threaded()) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line) if line.startswith("{") else {}
            record = said.get("record", record)
            if "stage" in said:
                stage = said["stage"]
                print(f"  {name}: {stage}", file=sys.stderr, flush=True)
        process.wait()
        errors.seek(0)
        problem = errors.read().strip().splitlines()[-1:]
    if process.returncode or not record:
        reason = " ".join([f"{stage}: the process ended with status {process.returncode}.", *problem])
        record = {"model": name, "failed": portable(reason)[:500]}
    settings = {"seeds": options.seeds, "count": options.count}
    return {**record, **settings, **provenance()}


# -- the claims


def checks(records: Sequence[Json]) -> list[Check]:
    """Return what is claimed, and whether it holds."""
    good = [r for r in records if "failed" not in r]
    if not good:
        return []
    drops = [(-row["minus_fp32"][0], r["model"], row["engine"]) for r in good for row in r["rows"] if is_ours(row)]
    found: list[Check] = []
    if drops:
        most, model, engine = max(drops)
        text = f"at most {most:.2f}: {model} in {engine}; {statistics.fmean(d for d, _, _ in drops):.2f} in the mean"
        claim = f"secateur's int8 costs at most {ALLOWED_DROP} points of top-1, in every engine"
        found.append(Check(claim, most <= ALLOWED_DROP, text))
    for peer, engine in sorted({(a["peer"], a["engine"]) for r in good for a in r["against"]}):
        found.append(no_worse(peer, engine, good))
    return found


def is_ours(row: Json) -> bool:
    return row["method"] == DEFAULT


def no_worse(peer: str, engine: str, records: Sequence[Json]) -> Check:
    """Compare means with one peer: over all models, and that no model is worse by more than twice the noise."""
    found = {
        r["model"]: a["secateur_minus_peer"]
        for r in records
        for a in r["against"]
        if (a["peer"], a["engine"]) == (peer, engine)
    }
    mean = statistics.fmean(d for d, _ in found.values())
    error = math.sqrt(sum(e * e for _, e in found.values())) / len(found)
    worse = {model: d for model, (d, e) in found.items() if d < -2 * e}
    least = min(found, key=lambda model: found[model][0])
    text = f"{mean:+.2f} ± {error:.2f} points in the mean over models; least: {points(found[least])}, {least}"
    claim = f"secateur is no worse than {peer} in {engine}, in the mean over models, nor clearly so for any of them"
    return Check(claim, mean >= 0 and not worse, text)


def points(pair: Sequence[float]) -> str:
    return f"{pair[0]:+.2f} ± {pair[1]:.2f}"


# -- the table


def rows(record: Json) -> list[list[str]]:
    """Return the lines of a model: fp32 first, secateur's, then peers'."""
    if "failed" in record:
        return [[record["model"], "FAILED", *["-"] * 5]]
    against = {(a["peer"], a["engine"]): a["secateur_minus_peer"] for a in record["against"]}
    order = ["fp32", *PIPELINES]

    def place(row: Json) -> tuple[int, str, str]:
        known = row["method"] in order
        return (order.index(row["method"]) if known else len(order), row["method"], row["engine"])

    lines: list[list[str]] = []
    for row in sorted(record["rows"], key=place):
        top1, key = row["top1"], (row["method"], row["engine"])
        spread = f"{min(top1):.2f} to {max(top1):.2f}" if len(top1) > 1 else "-"
        minus = "-" if row["method"] == "fp32" else points(row["minus_fp32"])
        ours = points(against[key]) if key in against else "-"
        lines.append([record["model"], *key, f"{statistics.fmean(top1):.2f}", spread, minus, ours])
    return lines


def report(head: Mapping[str, object], records: Sequence[Json]) -> list[str]:
    """Return int8_accuracy.md."""
    lines = ["# Accuracy of int8 networks", "", *describe(head), "", *map(str, checks(records))]
    commits = sorted({f"{r['commit']} ({r['date'][:10]})" for r in records})
    if len(commits) > 1:
        lines += ["", f"Records come from several commits: {', '.join(commits)}."]
    several = len({(r["seeds"], r["count"]) for r in records}) > 1
    if several:
        lines += ["", "Records come from different numbers of seeds or calibration images, see the .json file."]
    images = max((r["images"] for r in records if "images" in r), default=10_000)
    legend = LEGEND.format(
        images=images,
        one=100 / images,
        count=head["count"],
        seeds=head["seeds"],
        default=PIPELINES[DEFAULT],
        minmax=PIPELINES[MINMAX],
        DEFAULT=DEFAULT,
        MINMAX=MINMAX,
        STATIC=STATIC,
        NNCF=NNCF,
    )
    columns = ("model", "method", "engine", "top-1 %", "seeds", "minus fp32", "secateur minus this")
    lines += ["", legend, "", *table(columns, [line for r in records for line in rows(r)], left=3)]
    failed = [f"- {r['model']}: {r['failed']}" for r in records if "failed" in r]
    return [*lines, *(["", "## What failed", "", *failed] if failed else [])]


def read_records(folder: Path) -> dict[str, Json]:
    """Return what was found before."""
    path = folder / f"{NAME}.json"
    if not path.exists():
        return {}
    return {r["model"]: r for r in json.loads(path.read_text(encoding="utf-8"))["models"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="models by name, with * and ?")
    parser.add_argument("--resume", action="store_true", help="keep what is on record, run what is missing or failed")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1, help="models at a time, one thread each")
    parser.add_argument("--seeds", type=int, default=3, help="how many choices of calibration images")
    parser.add_argument("--count", type=int, default=512, help="calibration images")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="that run secateur's")
    parser.add_argument("--static", nargs="*", default=["MinMax", "Percentile"], help="methods of quantize_static")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="weights and images")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args()
    options.data = options.data.resolve()
    absent = [name for name in ARCHIVES if not (options.data / name).exists()]
    models = cifar_files(options.data)
    if absent or not models or importlib.util.find_spec("nncf") is None:
        print(f"needs nncf (pip install nncf), and in --data {', '.join(ARCHIVES)}, cifar-resnets/", file=sys.stderr)
        return 2
    head = header(1, "onnx", "onnxruntime", "openvino", "nncf") | {"seeds": options.seeds, "count": options.count}
    names = [n for n in models if not options.only or any(fnmatch(n, pattern) for pattern in options.only)]
    records = read_records(options.out)  # of which those that are run again are replaced
    todo = [n for n in names if not (options.resume and n in records and "failed" not in records[n])]
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.workers) as pool:
        images = unpack(options.data, Path(folder))
        futures = [pool.submit(run_one, name, images, options) for name in todo]
        for number, future in enumerate(as_completed(futures), 1):
            record = future.result()
            records[record["model"]] = record
            print(f"[{number}/{len(todo)}] {record['model']} {record.get('failed', '')}", file=sys.stderr, flush=True)
            head["wall_minutes"] = round((time.perf_counter() - begin) / 60, 1)
            ordered = sorted(records.values(), key=lambda r: r["model"])
            write_results(options.out, NAME, {**head, "models": ordered}, report(head, ordered))
    verdict = checks([records[n] for n in names if n in records])
    print("\n".join(map(str, verdict)))
    failed = any("failed" in records[n] for n in names)
    return int(failed or not verdict or not all(check.holds for check in verdict))


if __name__ == "__main__":
    sys.exit(main())
