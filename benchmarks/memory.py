"""Memory that compiling takes, in multiples of the model's own bytes.

    python benchmarks/memory.py [--model regnet_y_128gf]

Builds the model and compiles it without the proof in a process of its own. Writes results/memory.json and
results/memory.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from common import GIB, RESULTS, Json, build, describe, header, resident, single_threaded, table, write_results

LIMIT = 3.0

LEGEND = """\
A fresh process imports everything, builds {model} (random state) and runs
`compile(model, x, pipeline="prune{{macs=0.5}}", verify=False).save(directory)`, which writes model.py,
model.safetensors, plan.json and report.json. *peak* is the process's highest resident memory so far (`ru_maxrss`), less
what was resident after the imports. The model is built in that process, so it counts once: building alone has to come
to 1.0 or more. The model's own bytes are those of its parameters and buffers: {size:.3f} GiB."""


def measure(name: str) -> Json:
    """Compile a model in this process; return its size and the peak after each stage, in bytes."""
    import torch

    from secateur.backends.compile import compile
    from secateur.compiler import vision

    torch.set_num_threads(1)
    vision.import_torchvision()
    baseline = resident()["now"]
    stages: dict[str, Json] = {}
    begin = time.perf_counter()

    def mark(stage: str) -> None:
        nonlocal begin
        found = resident()
        now = time.perf_counter()
        stages[stage] = {"peak": found["peak"] - baseline, "after": found["now"] - baseline, "seconds": now - begin}
        begin = now

    model = build(name)
    size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    x = torch.zeros(vision.input_shapes(name, model)[0])
    mark("build")
    compiled = compile(model, x, pipeline="prune{macs=0.5}", verify=False)
    mark("compile")
    with tempfile.TemporaryDirectory() as folder:
        compiled.save(Path(folder) / "artefact")
    mark("save")
    kept = sum(t.numel() * t.element_size() for t in [*compiled.module.parameters(), *compiled.module.buffers()])
    return {"model": name, "bytes": size, "compact_bytes": kept, "after_imports": baseline, "stages": stages}


def report(head: Json, found: Json) -> list[str]:
    """Return memory.md."""
    size = found["bytes"]
    rows = [
        [name, f"{s['peak'] / GIB:.2f}", f"{s['peak'] / size:.2f}", f"{s['after'] / size:.2f}", f"{s['seconds']:.1f}"]
        for name, s in found["stages"].items()
    ]
    return [
        "# Memory: compiling without the proof",
        "",
        *describe(head),
        "",
        f"**{found['model']} peaks at {found['ratio']:.2f} times its own bytes (at most {LIMIT:g} is demanded).**",
        "",
        LEGEND.format(model=found["model"], size=size / GIB),
        f"The compact model is {found['compact_bytes'] / size:.2f} of them.",
        "",
        *table(("after", "peak GiB", "peak / model", "still resident / model", "s"), rows),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="regnet_y_128gf", help="a torchvision model")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        warnings.filterwarnings("ignore")
        print(json.dumps(measure(options.model)))
        return 0
    # This process stays small: a child's peak starts at what its parent had.
    child = [sys.executable, __file__, "--here", "--model", options.model]
    done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True, env=single_threaded())
    found = json.loads(done.stdout.splitlines()[-1])
    found["ratio"] = max(s["peak"] for s in found["stages"].values()) / found["bytes"]
    head = header(1)
    write_results(options.out, "memory", {**head, **found}, report(head, found))
    print(f"{found['model']} peaks at {found['ratio']:.2f} times its own bytes")
    return int(found["ratio"] >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
