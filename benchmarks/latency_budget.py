"""Whether a budget in milliseconds holds: asked for, searched, and then timed again in pairs with the dense network.

    python benchmarks/latency_budget.py                              # ResNet-50 and MobileNetV2, torch and ONNX Runtime
    python benchmarks/latency_budget.py --only resnet50 --engines openvino --latency 0.5

Each search runs in a process of its own, with an empty cache of profiles. Writes results/latency_budget.json and
results/latency_budget.md; searches that are not run again keep their results. Use an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import RESULTS, Json, build, describe, header, portable, provenance, settle, single_threaded, table
from common import write_results as write

NAME = "latency_budget"
MODELS = ("resnet50", "mobilenet_v2")
ENGINES = ("torch", "onnx")
WITHIN = 0.05
"""How far off a request may be, relative to it."""
CLEAN = "eliminate-identity,fold-constants,fold-bn"

LEGEND = """\
Random weights, one thread, batch 1, 224 x 224: `{pipeline}`. *Dense* and *pruned* networks, both folded, are timed in
turns, {rounds} rounds, after the search and apart from it; *kept* is the median of the ratio within a round, with its
quartiles. *Multiples* are those of the channels written and read that the search found to explain the times of layers
best; *model error* is how far its model of these times is off, in the median over layers and networks."""


def work(model: str, engine: str, latency: float, rounds: int) -> Json:
    """Search and time one network; runs in a process of its own."""
    import numpy as np
    import torch

    from secateur.backends.compile import equip
    from secateur.backends.stopwatch import DeployedStopwatch
    from secateur.compiler import vision
    from secateur.compiler.capture import trace
    from secateur.compiler.cost import measure
    from secateur.passes.pipeline import PassPipeline

    torch.set_num_threads(1)
    net = build(model)
    shape = vision.input_shapes(model, net)[0]
    settle(net, shape)
    program = trace(net, torch.zeros(shape))
    begin = time.perf_counter()
    passes = PassPipeline.parse(pipeline(engine, latency))
    step = equip(passes, None, lambda text: None).run(program).steps[0]
    seconds = time.perf_counter() - begin
    watch = DeployedStopwatch(engine, 1, 1, behind=passes.passes[1:])
    times = np.concatenate([watch.compare([program, step.program]) for _ in range(-(-rounds // 30))])
    low, median, high = np.quantile(times[:, 1] / times[:, 0], (0.25, 0.5, 0.75)).tolist()
    before, after = measure(program), measure(step.program)
    return {
        "rounds": len(times),
        "dense_ms": 1e3 * float(np.median(times[:, 0])),
        "pruned_ms": 1e3 * float(np.median(times[:, 1])),
        "kept": [low, median, high],
        "macs_kept": after.macs / before.macs,
        "search_seconds": round(seconds, 1),
        "stats": dict(step.stats),
    }


def pipeline(engine: str, latency: float) -> str:
    return f"prune{{latency={latency:g} scope=knapsack engine={engine}}},{CLEAN}"


def report(head: Json, records: Sequence[Json]) -> list[str]:
    """Return latency_budget.md."""
    lines = ["# Budgets in milliseconds", "", *describe(head), ""]
    for r in records:
        if "failed" in r:
            lines.append(f"- **NO**: {r['model']}, {r['engine']}: {r['failed']}")
            continue
        off = r["kept"][1] / r["latency"] - 1
        answer = "yes" if abs(off) <= WITHIN else "NO"
        claim = f"{r['model']}, {r['engine']}: {r['latency']:g} of the milliseconds, within {100 * WITHIN:.0f} %"
        lines.append(f"- **{answer}**: {claim} ({r['kept'][1]:.3f}, off by {100 * off:+.1f} %)")
    good = [r for r in records if "failed" not in r]
    rounds = max((r["rounds"] for r in good), default=0)
    legend = LEGEND.format(pipeline=pipeline("ENGINE", head["latency"]), rounds=rounds)
    columns = (
        "model", "engine", "asked for", "kept", "dense ms", "pruned ms", "MACs kept %", "multiples", "model error %",
        "search s",
    )  # fmt: skip
    return [*lines, "", legend, "", *table(columns, map(row, good), left=2)]


def row(r: Json) -> list[str]:
    low, median, high = r["kept"]
    stats = r["stats"]
    return [
        r["model"],
        r["engine"],
        f"{r['latency']:g}",
        f"{median:.3f} [{low:.3f}, {high:.3f}]",
        f"{r['dense_ms']:.2f}",
        f"{r['pruned_ms']:.2f}",
        f"{100 * r['macs_kept']:.1f}",
        f"{stats['block_out']}, {stats['block_in']}",
        f"{100 * stats['model_error']:.1f}",
        f"{r['search_seconds']:.0f}",
    ]


def run_one(model: str, engine: str, options: argparse.Namespace) -> Json:
    record: Json = {"model": model, "engine": engine, "latency": options.latency}
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, str(Path(__file__)), "--work", model, engine, "--rounds", str(options.rounds)]
        environment = {**single_threaded(), "SECATEUR_CACHE": cache}
        done = subprocess.run(
            [*command, "--latency", str(options.latency)], capture_output=True, text=True, env=environment, check=False
        )
    if done.returncode:
        record["failed"] = portable((done.stderr.strip().splitlines() or ["?"])[-1])[:300]
    else:
        record |= json.loads(done.stdout.splitlines()[-1])
    return {**record, **provenance()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(MODELS), help="torchvision models")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--latency", type=float, default=0.6, help="fraction of the milliseconds to keep")
    parser.add_argument("--rounds", type=int, default=60, help="of the final comparison, at least")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    parser.add_argument("--work", nargs=2, metavar=("MODEL", "ENGINE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        print(json.dumps(work(options.work[0], options.work[1], options.latency, options.rounds)))
        return 0
    head = header(1, "onnx", "onnxruntime", "openvino") | {"latency": options.latency}
    path = options.out / f"{NAME}.json"
    known: list[Json] = json.loads(path.read_text(encoding="utf-8"))["records"] if path.exists() else []
    records = {(r["model"], r["engine"], r["latency"]): r for r in known}
    for model in options.only:
        for engine in options.engines:
            print(f"{model}, {engine}", file=sys.stderr, flush=True)
            records[model, engine, options.latency] = run_one(model, engine, options)
            ordered = sorted(records.values(), key=lambda r: (r["model"], r["engine"], r["latency"]))
            write(options.out, NAME, {**head, "records": ordered}, report(head, ordered))
    found = records.values()
    return int(any("failed" in r or abs(r["kept"][1] / r["latency"] - 1) > WITHIN for r in found))


if __name__ == "__main__":
    sys.exit(main())
