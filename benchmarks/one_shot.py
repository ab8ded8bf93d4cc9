"""What pruning without training costs: time and memory of the presets on ResNet-50 at 224 x 224.

    python benchmarks/one_shot.py

Random weights and random images (neither changes how much is computed), both cores; each preset in a process of its
own. Writes results/one_shot.json and results/one_shot.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from common import GIB, RESULTS, Json, build, describe, header, portable, table, write_results

NAME = "one_shot"
MODEL = "resnet50"
BATCH = 16
CASES = {
    "data-free": ("@data-free{macs=0.5}", 0, 10.0),
    "reconstruction": ("prune{macs=0.5 criterion=l2},reconstruct", 64, 180.0),
    "one-shot": ("@one-shot{macs=0.5}", 64, 180.0),
}
"""Name -> pipeline, images, seconds that it may take."""


def work(case: str) -> Json:
    """Run one case; in a process of its own."""
    import torch

    from secateur.backends.compile import equip
    from secateur.compiler.capture import trace
    from secateur.passes.instruments import TimePasses
    from secateur.passes.pipeline import PassPipeline

    pipeline, images, _ = CASES[case]
    program = trace(build(MODEL), torch.zeros(1, 3, 224, 224))
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(BATCH, 3, 224, 224, generator=generator) for _ in range(images // BATCH)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    timing = TimePasses()
    begin = time.perf_counter()
    equip(PassPipeline.parse(pipeline), data or None, lambda text: None).run(program, [timing])
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "passes": [list(t) for t in timing.seconds], "before_bytes": before, "peak_bytes": peak}


def report(head: Json, records: dict[str, Json]) -> list[str]:
    """Return one_shot.md."""
    lines = ["# What pruning without training costs", "", *describe(head), ""]
    rows: list[list[str]] = []
    for case, record in records.items():
        pipeline, images, limit = CASES[case]
        if "failed" in record:
            lines.append(f"- **NO**: {case}: {record['failed']}")
            continue
        answer = "yes" if record["seconds"] <= limit else "NO"
        lines.append(f"- **{answer}**: {MODEL}, {case}, in at most {limit:.0f} s ({record['seconds']:.1f} s)")
        passes = ", ".join(f"{name.partition('{')[0]} {seconds:.1f}" for name, seconds in record["passes"])
        memory = f"{record['peak_bytes'] / GIB:.2f}"
        rows.append([case, f"`{pipeline}`", str(images), f"{record['seconds']:.1f}", memory, passes])
    columns = ("case", "pipeline", "images", "seconds", "peak memory GiB", "seconds by pass")
    return [
        *lines,
        "",
        "Peak memory is that of the whole process, with torch and the model.",
        "",
        *table(columns, rows),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    parser.add_argument("--work", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(options.work)))
        return 0
    head, records = header(2), {}
    for case in CASES:
        print(case, file=sys.stderr, flush=True)
        command = [sys.executable, str(Path(__file__)), "--work", case]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        failed = {"failed": portable((done.stderr.strip().splitlines() or ["?"])[-1])[:300]}
        records[case] = failed if done.returncode else json.loads(done.stdout.splitlines()[-1])
        write_results(options.out, NAME, {**head, "records": records}, report(head, records))
    return int(any("failed" in records[c] or records[c]["seconds"] > limit for c, (_, _, limit) in CASES.items()))


if __name__ == "__main__":
    sys.exit(main())
