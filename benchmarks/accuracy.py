"""Top-1 of pruned CIFAR ResNets at equal MACs, before and after a short fine-tune, by secateur and torch-pruning.

    python benchmarks/accuracy.py                                    # everything: hours
    python benchmarks/accuracy.py --only '*20*' --methods best,'torch-pruning*' --macs 0.7 0.5 --seeds 1 --no-tune
    python benchmarks/accuracy.py --seeds 1 && python benchmarks/accuracy.py --resume --methods best,data-free
    python benchmarks/accuracy.py --resume                           # what an interrupted run left

Needs the data folder (--data): trained CIFAR ResNets, and CIFAR-10 as JPEG files; and torch-pruning. A network that the
folder has for uncompressed images only is adapted first (--adapted keeps its weights). Each model runs in a process of
its own (accuracy_worker.py). Writes results/accuracy.json and results/accuracy.md; jobs (model, method, MACs, seed)
that are not run again keep their results.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from threading import Lock
from typing import Any

from accuracy_worker import ADAPT, ADAPTED, PIPELINES, PLAIN, TP, TP_METHODS, TUNE, Job
from common import RESULTS, ROOT, Json, cifar_files, describe, header, portable, provenance, single_threaded, table
from common import write_results as write
from int8_accuracy import ARCHIVES, Check, unpack

NAME = "accuracy"
WORKER = Path(__file__).with_name(f"{NAME}_worker.py")
BEST = "best"
MAIN = ",".join([BEST, "best without selection", "data-free", *PLAIN, f"{TP}*"])
"""Methods that are run unless others are asked for."""
AIMS = {("cifar_resnet20_jpeg", 0.7): 2.0, ("cifar_resnet20_jpeg", 0.5): 6.0}
"""Points that secateur's best may lose without fine-tuning."""
Key = tuple[str, str, float, int]

LEGEND = """\
CIFAR ResNets adapted to strongly compressed JPEG files (*_jpeg*), on the test images; pruned with {count} training
images, as many of each class, chosen by seeds. *MACs kept* is what came out, counted by the same rules for all.
{adapted}

- *{BEST}*: `{best}`; *best without selection* leaves `select` out, *best without blocks*
  `reconstruct-blocks`; *data-free*: `{free}`.
- A criterion's name alone: `{plain}`; *+ reestimate-bn* measures batch-norm statistics again, on the same images.
- *torch-pruning*: its criterion and scope, the ratio searched by bisection for the MACs asked for. The trunk, which it
  breaks in these networks, is left out by hand; Taylor's gradients are of the loss on the same images, the Hessian's of
  64 of them, one by one.
- *top-1* straight after pruning; *tuned*: after one more recipe, the same for all: {tune.images:,} training images,
  {tune.epochs} epoch, SGD, cosine from {tune.lr}. Percent, mean over seeds, lowest and highest in brackets."""


def key_of(record: Json) -> Key:
    return record["model"], record["method"], record["macs"], record["seed"]


def checks(records: Sequence[Json]) -> list[Check]:
    """Return what is claimed, and whether it holds."""
    good = [r for r in records if "failed" not in r]
    found: list[Check] = []
    for (model, macs), most in AIMS.items():
        mine = [r for r in good if (r["model"], r["method"], r["macs"]) == (model, BEST, macs)]
        if mine:
            lost = statistics.fmean(r["dense"] - r["top1"] for r in mine)
            text = f"{lost:.2f}: {statistics.fmean(r['top1'] for r in mine):.2f} of {mine[0]['dense']:.2f} %"
            claim = f"{model} at {macs:g} of the MACs loses at most {most:g} points without fine-tuning"
            found.append(Check(claim, lost <= most, text))
    for figure, words in (("top1", "without fine-tuning"), ("tuned", "after the same fine-tune")):
        gains: dict[tuple[str, float], tuple[float, str]] = {}
        for model, macs in sorted({(r["model"], r["macs"]) for r in good}):
            means = mean_by_method(good, model, macs, figure)
            peers = {m: mean for m, mean in means.items() if m.startswith(TP)}
            if BEST in means and peers:
                peer = max(peers, key=lambda m: peers[m])
                gains[model, macs] = means[BEST] - peers[peer], peer
        if gains:
            place = min(gains, key=lambda p: gains[p][0])
            gain, peer = gains[place]
            text = f"{len(gains)} comparisons; least: {gain:+.2f} points, {place[0]} at {place[1]:g}, {peer}"
            found.append(Check(f"secateur's best is ahead of torch-pruning's best {words}", gain > 0, text))
    return found


def place_of(head: Json, device: str) -> str:
    """Say where a cell was pruned, measured and tuned."""
    accelerator = "" if device == "cpu" else f", measured and tuned on {head['machine'].get('accelerator', device)}"
    return f"pruned on {head['machine']['cpu']}{accelerator}, torch {head['versions']['torch']}"


def mean_by_method(records: Sequence[Json], model: str, macs: float, figure: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for record in records:
        if (record["model"], record["macs"]) == (model, macs) and figure in record:
            values.setdefault(record["method"], []).append(record[figure])
    return {method: statistics.fmean(found) for method, found in values.items()}


def report(head: Mapping[str, Any], records: Sequence[Json]) -> list[str]:
    """Return accuracy.md."""
    lines = ["# Accuracy of pruned networks", "", *describe(head), "", *map(str, checks(records)), ""]
    commits = sorted({f"{r['commit']} ({r['date'][:10]})" for r in records})
    if len(commits) > 1:
        lines += [f"Records come from several commits: {', '.join(commits)}.", ""]
    # Earlier records do not say where; they are from the machine of the header.
    places = Counter(r.get("on") or place_of(dict(head), "cpu") for r in records)
    if len(places) > 1:
        lines += ["Cells:", "", *(f"- {count} {place}" for place, count in sorted(places.items())), ""]
    lines += [
        LEGEND.format(
            count=head["count"],
            BEST=BEST,
            best=PIPELINES[BEST],
            free=PIPELINES["data-free"],
            plain=PIPELINES["l1"],
            adapted=f"Adapted here, by {ADAPT.epochs} epochs of all training images, cosine from {ADAPT.lr}: "
            f"{', '.join(head['adapted']) or 'none'}; the others came so.",
            tune=TUNE,
        ),
        "",
    ]
    good = [r for r in records if "failed" not in r]
    columns = ("method", "MACs kept %", "top-1 %", "tuned %", "CPU seconds to prune", "seeds")
    for model, macs in sorted({(r["model"], r["macs"]) for r in good}, key=lambda p: (p[0], -p[1])):
        mine = [r for r in good if (r["model"], r["macs"]) == (model, macs)]
        lines += [f"## {model} at {macs:g} of the MACs ({mine[0]['dense']:.2f} % unpruned)", ""]
        methods: dict[str, list[Json]] = {}
        for record in mine:
            methods.setdefault(record["method"], []).append(record)
        ordered = sorted(methods.items(), key=lambda item: -statistics.fmean(r["top1"] for r in item[1]))
        lines += [*table(columns, [row(method, found) for method, found in ordered]), ""]
    failed = [f"- {job_text(r)}: {r['failed']}" for r in records if "failed" in r]
    return [*lines, *(["## What failed", "", *failed] if failed else [])]


def row(method: str, records: Sequence[Json]) -> list[str]:
    tuned = [r["tuned"] for r in records if "tuned" in r]
    return [
        method,
        f"{100 * statistics.fmean(r['kept'] for r in records):.1f}",
        spread([r["top1"] for r in records]),
        spread(tuned) if tuned else "-",
        f"{statistics.fmean(r['seconds'] for r in records):.0f}",
        str(len(records)),
    ]


def spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} [{min(values):.2f}, {max(values):.2f}]"


def job_text(record: Json) -> str:
    return f"{record['model']}, {record['method']}, {record['macs']:g}, seed {record['seed']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="*20_jpeg,*32_jpeg,*56_jpeg", metavar="LIST", help="patterns of models")
    parser.add_argument("--methods", default=MAIN, metavar="LIST", help="patterns, with commas between them")
    parser.add_argument("--macs", nargs="+", type=float, default=[0.8, 0.7, 0.6, 0.5], help="fractions kept")
    parser.add_argument("--seeds", type=int, default=3, help="how many choices of training images")
    parser.add_argument("--count", type=int, default=1024, help="training images to prune with")
    parser.add_argument("--tune", action=argparse.BooleanOptionalAction, default=True, help="fine-tune, too")
    parser.add_argument("--resume", action="store_true", help="run only what is not on record")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes, one thread each")
    parser.add_argument("--device", default="cpu", help="where networks are measured and tuned; pruned on the CPU")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="weights and images")
    parser.add_argument("--adapted", type=Path, default=ROOT / "build/adapted", help="weights that were adapted here")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args()
    options.data = options.data.resolve()
    given = cifar_files(options.data)
    published = {name + ADAPTED: file for name, file in given.items() if not name.endswith(ADAPTED)}
    published = {name: file for name, file in published.items() if name not in given}
    weights = given | {
        name: options.adapted / f"{file.stem.partition('-')[0]}{ADAPTED}.pt" for name, file in published.items()
    }
    models = [name for name in weights if any(fnmatch(name, pattern) for pattern in options.only.split(","))]
    if not models or not all((options.data / name).exists() for name in ARCHIVES):
        print(f"needs in --data {', '.join(ARCHIVES)}, cifar-resnets/", file=sys.stderr)
        return 2
    patterns = options.methods.split(",")
    methods = [m for m in (*PIPELINES, *TP_METHODS) if any(fnmatch(m, p) for p in patterns)]
    if importlib.util.find_spec("torch_pruning") is None and any(m.startswith(TP) for m in methods):
        print("needs torch-pruning (pip install torch-pruning), or --methods without it", file=sys.stderr)
        return 2
    head = header(1, "torch-pruning") | {"count": options.count, "seeds": options.seeds}
    on = place_of(head, options.device)
    head["adapted"] = sorted(set(published) & set(models))
    path = options.out / f"{NAME}.json"
    known: list[Json] = json.loads(path.read_text(encoding="utf-8"))["records"] if path.exists() else []
    # What was tuned by another recipe compares with nothing.
    records = {key_of(r): r for r in known if r.get("recipe", asdict(TUNE)) == asdict(TUNE)}

    def is_done(record: Json | None) -> bool:
        return record is not None and "failed" not in record and ("tuned" in record or not options.tune)

    jobs = {
        model: [
            Job(method, macs, seed)
            for seed in range(options.seeds)
            for macs in options.macs
            for method in methods
            if not (options.resume and is_done(records.get((model, method, macs, seed))))
        ]
        for model in models
    }
    total, done, begin, lock = sum(map(len, jobs.values())), 0, time.perf_counter(), Lock()
    # A method's seeds stay in one process, which does not measure a network twice.
    shares = [
        (model, [job for job in todo if methods.index(job.method) % options.workers == part])
        for model, todo in jobs.items()
        for part in range(options.workers)
    ]

    def take(record: Json) -> None:
        nonlocal done
        with lock:
            done += 1
            records[key_of(record)] = {**record, **provenance(), "on": on}
            figures = record.get("failed") or f"{record['top1']:.2f} {record.get('tuned', float('nan')):.2f}"
            print(f"[{done}/{total}] {job_text(record)}: {figures}", file=sys.stderr, flush=True)
            head["wall_minutes"] = round((time.perf_counter() - begin) / 60, 1)
            ordered = sorted(records.values(), key=key_of)
            write(options.out, NAME, {**head, "records": ordered}, report(head, ordered))

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.workers) as pool:
        images = unpack(options.data, Path(folder))

        def worker(model: str, file: Path) -> list[str]:
            where = ["--images", str(images), "--weights", str(file), "--device", options.device]
            return [sys.executable, str(WORKER), model, *where]

        missing = [name for name in published if name in models and jobs[name] and not weights[name].exists()]

        def adapt(name: str) -> None:
            print(f"{name}: adapting, {ADAPT.epochs} epochs", file=sys.stderr, flush=True)
            command = [*worker(name, published[name]), "--adapt", str(weights[name])]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=single_threaded())

        list(pool.map(adapt, missing))

        def run(share: tuple[str, list[Job]]) -> None:
            model, todo = share
            if not todo:
                return
            command = worker(model, weights[model])
            command += ["--count", str(options.count), *(["--tune"] if options.tune else [])]
            command += [part for job in todo for part in ("--job", str(job))]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=single_threaded()) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    said = json.loads(line) if line.startswith("{") else {}
                    if "record" in said:
                        take(said["record"])
            if process.returncode:
                print(f"{model}: {portable(' '.join(command[1:3]))} ended with {process.returncode}", file=sys.stderr)

        list(pool.map(run, shares))
    verdict = checks(list(records.values()))
    print("\n".join(map(str, verdict)))
    return int(done < total or not verdict or not all(check.holds for check in verdict))


if __name__ == "__main__":
    sys.exit(main())
