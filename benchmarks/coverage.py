"""Every torchvision model, and CIFAR ResNets with zero-padded shortcuts: compiled, proven, trained, emitted, reloaded.

    python benchmarks/coverage.py                    # everything
    python benchmarks/coverage.py --only 'resnet*'   # some; the results of the others stay
    python benchmarks/coverage.py --resume           # what an interrupted run left, and what failed

Each model runs in a process of its own (coverage_worker.py). Writes results/coverage.json and results/coverage.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path
from typing import cast

from common import (
    GIB,
    RESULTS,
    ROOT,
    Json,
    cifar_files,
    describe,
    header,
    percent,
    portable,
    provenance,
    single_threaded,
    table,
    write_results,
)

WORKER = Path(__file__).with_name("coverage_worker.py")
COLUMNS = (
    "model", "input", "M params", "G MACs", "prunable MACs %", "params kept %", "MACs kept %", "proof error",
    "trace s", "analyse s", "prune s", "verify s", "trains", "reloads", "compile GiB", "peak GiB",
)  # fmt: skip

LEGEND = """\
Each model is pruned with `prune{macs=0.5}` from a random state: weights, and all that initialisation leaves constant
(statistics and affine parameters of norms, biases, layer scales), drawn so that the outputs of two random inputs differ
by at least 1e-3 of the largest output. CIFAR ResNets carry trained weights.

- *input*: the model's default size, for which MACs are counted. The proof, the training step and the reload run on a
  smaller one where the model takes it: 96 x 96 images, 8 frames of 64 x 64 (VGG, AlexNet, S3D, Inception and CIFAR:
  their own).
- *prunable MACs*: share of the MACs that is in layers of which some input or output channel may be removed.
- *proof error*: max |compact - masked original| / max |masked original| in float64, the larger of two batches (of 2 and
  of 3; the second also of another image size where the model takes one). At most 1e-9 is demanded.
- *trace, analyse, prune, verify*: CPU seconds on one thread. *prune* contains its own analysis, *verify* is the proof.
- *trains*: one forward and backward pass in train() gave every trainable parameter a finite gradient.
- *reloads*: the artefact's model.py and model.safetensors, loaded in a fresh process that can import neither secateur
  nor torchvision, give the outputs of the compact module in memory: bit for bit in float32 (*exact*), or in float64
  within 1e-12 (*1e-12*).
- Detectors are Python around networks: what is pruned, counted and proven is the program of these networks, and that
  their own code computes the same with the pruned layers was checked too, in float64. Images are 320 x 320. They are
  trained with targets, and their model.py builds on torchvision.
- *compile GiB*: resident memory at its highest from the start to the end of compiling without the proof; *peak GiB*: to
  the end of all checks, training included. Both count Python, torch and the model itself."""


def wanted(data: Path) -> tuple[dict[str, int], list[str]]:
    """Return all models with their sizes, and what there is to say about those that are missing."""
    done = subprocess.run([sys.executable, str(WORKER), "--list"], capture_output=True, text=True, check=True)
    sizes = cast("dict[str, int]", json.loads(done.stdout.splitlines()[-1]))
    cifar = {name: path.stat().st_size // 4 for name, path in cifar_files(data).items()}
    missing = [] if cifar else [f"CIFAR ResNets were skipped: no weights in {portable(str(data))}, see --data"]
    return {**sizes, **cifar}, missing


def run_one(name: str, options: argparse.Namespace) -> Json:
    """Run the worker for one model; whatever becomes of it, a record comes back."""
    arguments = [sys.executable, str(WORKER), name, "--macs", str(options.macs), "--data", str(options.data)]
    begin, came_from = time.perf_counter(), provenance()
    with subprocess.Popen(
        arguments,
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
    """Return the newest record of each model, finished runs and interrupted ones."""
    records: dict[str, Json] = {}
    if (folder / "coverage.json").exists():
        for record in json.loads((folder / "coverage.json").read_text(encoding="utf-8"))["models"]:
            records[record["model"]] = record
    if (folder / "coverage.jsonl").exists():
        for line in (folder / "coverage.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            records[record["model"]] = record
    return records


def row(record: Json) -> list[str]:
    """Return a record as a line of the table."""
    if "macs_kept" not in record:
        return [record["model"], "FAILED", *["-"] * (len(COLUMNS) - 2)]
    seconds, memory, emit = record["seconds"], record["memory"], record.get("emit", {})
    train, proof = record.get("train"), record.get("proof")
    reloads = "-" if not emit else "exact" if emit["dtype"] == "float32" else "1e-12"
    trains = "-" if train is None else "see below" if train["without_gradient"] or train["not_finite"] else "yes"
    return [
        record["model"],
        "x".join(map(str, record["input"][2:])),
        f"{record['params'] / 1e6:.1f}",
        f"{record['macs'] / 1e9:.2f}",
        percent(record["prunable_macs"]),
        percent(record["params_kept"]),
        percent(record["macs_kept"]),
        f"{proof['error']:.1e}" if proof else "-",
        *(f"{seconds[stage]:.2f}" if stage in seconds else "-" for stage in ("trace", "analyse", "prune", "verify")),
        trains,
        reloads,
        f"{memory['after_compile'] / GIB:.2f}",
        f"{memory['peak'] / GIB:.2f}",
    ]


def summary(records: Sequence[Json]) -> list[str]:
    """Return the table's essence in sentences."""
    good = [r for r in records if r["status"] == "ok"]
    lines = [f"**{len(good)} of {len(records)} models passed all checks.**"]
    if good:
        worst = max(good, key=lambda r: r["proof"]["error"])
        least = min(good, key=lambda r: r["prunable_macs"])
        took = sorted(sum(r["seconds"][s] for s in ("trace", "prune")) for r in good)
        lines += [
            "",
            f"- largest proof error {worst['proof']['error']:.1e} ({worst['model']})",
            f"- smallest prunable share of the MACs {percent(least['prunable_macs'])} % ({least['model']})",
            f"- trace and prune together: median {took[len(took) // 2]:.2f} s, at most {took[-1]:.2f} s",
            f"- {sum(r['emit']['dtype'] == 'float32' for r in good)} reload bit for bit in float32",
        ]
    return lines


def report(head: Mapping[str, object], records: Sequence[Json], missing: Sequence[str]) -> list[str]:
    """Return coverage.md."""
    title = "# Coverage: torchvision models and CIFAR ResNets at half the MACs"
    lines = [title, "", *describe(head), "", *summary(records)]
    commits = sorted({f"{r['commit']} ({r['date'][:10]})" for r in records})
    if len(commits) > 1:
        lines += ["", f"Records come from several commits: {', '.join(commits)}."]
    lines += ["", LEGEND, "", *table(COLUMNS, [row(r) for r in records], left=1)]
    failed = [r for r in records if r["status"] != "ok"]
    if failed:
        lines += ["", "## What failed", ""]
        lines += [f"- {r['model']}: {'; '.join(r['problems'])}" for r in failed]
    silent = [r for r in records if r.get("train", {}).get("without_gradient")]
    if silent:
        lines += ["", "## Parameters without a gradient", ""]
        for r in silent:
            also = set(r["train"].get("without_gradient_in_original_too", ()))
            names = [f"{n}{' (nor in the original)' if n in also else ''}" for n in r["train"]["without_gradient"]]
            lines.append(f"- {r['model']}: {', '.join(names)}")
    noted = [(r["model"], note) for r in records for note in (r.get("notes") or [])]
    if noted:
        lines += ["", "## Notes by the capture", "", *(f"- {model}: {note}" for model, note in noted)]
    return [*lines, *(f"\n{text}" for text in missing)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="models by name, with * and ?")
    parser.add_argument("--resume", action="store_true", help="keep what passed, run what is missing or failed")
    parser.add_argument("--workers", type=int, default=2, help="models at a time, one thread each")
    parser.add_argument("--limit", type=float, default=1200, help="seconds per model")
    parser.add_argument("--macs", type=float, default=0.5, help="fraction of the MACs that is kept")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="folder with cifar-resnets/")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args()
    options.data = options.data.resolve()
    head = header(1) | {"workers": options.workers, "macs": options.macs}
    models, missing = wanted(options.data)
    names = [n for n in models if not options.only or any(fnmatch(n, pattern) for pattern in options.only)]
    records = read_records(options.out) if options.resume or options.only else {}
    todo = [n for n in names if not (options.resume and records.get(n, {}).get("status") == "ok")]
    todo.sort(key=lambda n: models[n])
    print("\n".join([f"{len(todo)} models to run, {len(records)} on record", *missing]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with (
        (options.out / "coverage.jsonl").open("a" if records else "w", encoding="utf-8") as log,
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
    write_results(options.out, "coverage", {**head, "models": ordered}, report(head, ordered, missing))
    (options.out / "coverage.jsonl").unlink()
    print("\n".join(summary(ordered)))
    return int(any(records[name]["status"] != "ok" for name in names))


if __name__ == "__main__":
    sys.exit(main())
