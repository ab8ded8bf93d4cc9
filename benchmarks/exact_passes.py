"""Every torchvision model that is one graph, and CIFAR ResNets: cleaned up, folded, without dead channels, and proven.

    python benchmarks/exact_passes.py                    # everything
    python benchmarks/exact_passes.py --only 'resnet*'   # some; the results of the others stay
    python benchmarks/exact_passes.py --resume           # what an interrupted run left, and what failed

Each model runs in a process of its own (exact_passes_worker.py). Writes results/exact_passes.json and
results/exact_passes.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path

from common import (
    DETECTORS,
    GIB,
    RESULTS,
    ROOT,
    Json,
    describe,
    header,
    provenance,
    single_threaded,
    table,
    write_results,
)
from coverage import wanted

NAME = "exact_passes"
WORKER = Path(__file__).with_name(f"{NAME}_worker.py")
COLUMNS = (
    "model", "nodes", "after", "batch norms", "after", "why they stay", "error", "rewrite s", "prove s",
    "dead channels", "removed", "dead: error", "rewrite s", "prove s", "peak GiB",
)  # fmt: skip
CLEAN_UP = ("eliminate-identity", "fold-constants")

LEGEND = """\
Two runs per model, on the same random states and at the same image sizes as the checks of coverage.py (CIFAR ResNets
carry trained weights). The first:
`{clean}`.
The second, from *dead channels* on: the same with `eliminate-dead-channels` in front of `fold-bn`, on the model in
which an eighth of the channels of batch norms (scale and shift), linear layers and attention (rows and biases) were set
to 0.

- *nodes*, *batch norms*: operations of the graph, and batch norms among them, before and after.
- *why they stay*: how many batch norms cannot be folded exactly, per reason: neither the operation that makes their
  input nor one that reads their output takes in a scale.
- *error*: max |rewritten - original| / max |original| in float64, the larger of two batches (of 2 and of 3; the second
  also of another image size where the model takes one), and every tensor that was made is the float64 result, rounded.
  At most 1e-9 is demanded.
- *dead channels*: channels that were switched off, at random. *removed*: channels that went, counting channels that
  are coupled once: of a residual trunk, one goes only if all that is added to it is dead, and none if a layer norm is
  taken over it; every head keeps as many; what a depthwise convolution or batch norm makes of a dead channel is dead as
  well.
- *rewrite*, *prove*: CPU seconds on one thread. *peak GiB*: resident memory at its highest."""


def run_one(name: str, options: argparse.Namespace) -> Json:
    """Run the worker for one model; whatever becomes of it, a record comes back."""
    begin, came_from = time.perf_counter(), provenance()
    with subprocess.Popen(
        [sys.executable, str(WORKER), name, "--data", str(options.data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=single_threaded(),
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=options.limit)
            ended = f"the process ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            out, err = process.communicate()
            ended = f"took longer than {options.limit:g} s"
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    record = next((line["record"] for line in lines if "record" in line), None)
    if record is None:
        stage = lines[-1]["stage"] if lines else "start"
        reason = " ".join([f"{stage}: {ended}", *err.splitlines()[-1:]])
        record = {"model": name, "status": "failed", "problems": [reason], "wall_seconds": time.perf_counter() - begin}
    return {**record, **came_from}


def read_records(folder: Path) -> dict[str, Json]:
    """Return the newest record of each model, of finished runs and interrupted ones."""
    records: dict[str, Json] = {}
    whole, lines = folder / f"{NAME}.json", folder / f"{NAME}.jsonl"
    if whole.exists():
        records |= {record["model"]: record for record in json.loads(whole.read_text(encoding="utf-8"))["models"]}
    if lines.exists():
        found = map(json.loads, lines.read_text(encoding="utf-8").splitlines())
        records |= {record["model"]: record for record in found}
    return records


def row(record: Json) -> list[str]:
    """Return a record as a line of the table."""
    if "error" not in record:
        return [record["model"], "FAILED", *["-"] * (len(COLUMNS) - 2)]
    seconds, dead = record["seconds"], record.get("dead")
    why = "; ".join(f"{number} {reason}" for reason, number in record["left"].items()) or "-"
    cells = [
        record["model"],
        *map(str, record["nodes"]),
        *map(str, record["batch_norms"]),
        why,
        f"{record['error']:.1e}",
        f"{seconds['rewrite']:.2f}",
        f"{seconds['prove']:.2f}",
        *["-"] * 5,
        f"{record['peak'] / GIB:.2f}",
    ]
    if dead is not None:
        cells[9:14] = [
            str(dead["switched_off"]),
            str(dead["passes"]["eliminate-dead-channels"]["removed"]),
            f"{dead['error']:.1e}",
            f"{seconds['dead rewrite']:.2f}",
            f"{seconds['dead prove']:.2f}",
        ]
    return cells


def summary(records: Sequence[Json]) -> list[str]:
    """Return the table's essence in sentences."""
    good = [r for r in records if r["status"] == "ok"]
    lines = [f"**{len(good)} of {len(records)} models passed all checks.**"]
    if not good:
        return lines
    worst = max(good, key=lambda r: r["error"])
    norms, left = (sum(r["batch_norms"][i] for r in good) for i in (0, 1))
    whole = sum(r["batch_norms"][0] > 0 and r["batch_norms"][1] == 0 for r in good)
    having = sum(r["batch_norms"][0] > 0 for r in good)
    reasons = Counter[str]()
    for r in good:
        reasons.update(r["left"])
    lines += [
        "",
        f"- largest error {worst['error']:.1e} ({worst['model']})",
        f"- {norms - left:,} of {norms:,} batch norms are folded: all in {whole} of the {having} models that have any",
        *(f"- {number:,} stay: {reason}" for reason, number in reasons.most_common()),
        f"- clean-up removes {sum(cleaned(r) for r in good):,} operations, over all models",
    ]
    drawn = [r["model"] for r in good if max(run.get("noise", 0.0) for run in (r, r["dead"] or {})) > 1e-11]
    if drawn:
        lines.append(
            f"- {len(drawn)} random states amplify a change of their input by one unit in the last place to more than "
            f"1e-11 of their output, so that weights drawn by the check decide: {', '.join(drawn)}"
        )
    with_dead = [r["dead"] for r in good if r["dead"] is not None]
    if with_dead:
        worst_dead = max(good, key=lambda r: r["dead"]["error"] if r["dead"] else 0)
        removed = sum(d["passes"]["eliminate-dead-channels"]["removed"] for d in with_dead)
        none = [r["model"] for r in good if r["dead"] and not r["dead"]["passes"]["eliminate-dead-channels"]["removed"]]
        lines += [
            f"- {removed:,} dead channels are removed, in {len(with_dead) - len(none)} of {len(with_dead)} models; "
            f"largest error {worst_dead['dead']['error']:.1e} ({worst_dead['model']})",
            *([f"- dead channels, of which none may go, in {', '.join(none)}"] if none else []),
        ]
    return lines


def cleaned(record: Json) -> int:
    """Return how many operations the clean-up passes took away or computed once."""
    return sum(sum(record["passes"][name].values()) for name in CLEAN_UP)


def report(head: Mapping[str, object], records: Sequence[Json], missing: Sequence[str]) -> list[str]:
    """Return exact_passes.md."""
    lines = ["# Exact passes: what is folded and removed, and the proof", "", *describe(head), "", *summary(records)]
    commits = sorted({f"{r['commit']} ({r['date'][:10]})" for r in records})
    if len(commits) > 1:
        lines += ["", f"Records come from several commits: {', '.join(commits)}."]
    clean = next((r["pipeline"] for r in records if "pipeline" in r), "")
    lines += ["", LEGEND.format(clean=clean), "", *table(COLUMNS, map(row, records), left=1)]
    failed = [r for r in records if r["status"] != "ok"]
    if failed:
        lines += ["", "## What failed", "", *(f"- {r['model']}: {'; '.join(r['problems'])}" for r in failed)]
    return [*lines, *(["", *missing] if missing else [])]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="models by name, with * and ?")
    parser.add_argument("--resume", action="store_true", help="keep what passed, run what is missing or failed")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=2, help="models at a time, one thread each")
    parser.add_argument("--limit", type=float, default=600, help="seconds per model")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="folder with cifar-resnets/")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args()
    options.data = options.data.resolve()
    head = header(1) | {"workers": options.workers}
    models, missing = wanted(options.data)
    models = {name: size for name, size in models.items() if not name.startswith(DETECTORS)}
    names = [n for n in models if not options.only or any(fnmatch(n, pattern) for pattern in options.only)]
    records = read_records(options.out) if options.resume or options.only else {}
    todo = [n for n in names if not (options.resume and records.get(n, {}).get("status") == "ok")]
    todo.sort(key=lambda n: models[n])
    print("\n".join([f"{len(todo)} models to run, {len(records)} on record", *missing]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with (
        (options.out / f"{NAME}.jsonl").open("a" if records else "w", encoding="utf-8") as log,
        ThreadPoolExecutor(options.workers) as pool,
    ):
        futures = [pool.submit(run_one, name, options) for name in todo]
        for number, future in enumerate(as_completed(futures), 1):
            record = future.result()
            records[record["model"]] = record
            log.write(json.dumps(record) + "\n")
            log.flush()
            state = "" if record["status"] == "ok" else f"  FAILED {'; '.join(record['problems'])}"
            print(f"[{number}/{len(todo)}] {record['model']} {record['wall_seconds']:.0f} s{state}", flush=True)
    head["wall_minutes"] = round((time.perf_counter() - begin) / 60, 1)
    ordered = sorted(records.values(), key=lambda r: r["model"])
    write_results(options.out, NAME, {**head, "models": ordered}, report(head, ordered, missing))
    (options.out / f"{NAME}.jsonl").unlink()
    print("\n".join(summary(ordered)))
    return int(not names or any(records[name]["status"] != "ok" for name in names))


if __name__ == "__main__":
    sys.exit(main())
