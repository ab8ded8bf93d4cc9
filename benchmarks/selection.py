"""Whether reading fewer channels than others do is worth its copies: networks of equal MACs, with and without.

    python benchmarks/selection.py                                  # DenseNet-121 and ResNet-50, torch and ONNX Runtime

Random weights (times depend on shapes), global l2 scores, one thread; all networks of a model are folded and timed in
turns. Writes results/selection.json and results/selection.md. Use an idle machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common import RESULTS, Json, build, describe, header, settle, table, write_results

NAME = "selection"
MODELS = ("densenet121", "resnet50")
ENGINES = ("torch", "onnx")
WAYS = ("none", "paying", "all")
CLEAN = "eliminate-identity,fold-constants,fold-bn"

LEGEND = """\
`prune{{macs={macs:g} scope=global select=WAY}}`, then folded; batch 1, 224 x 224, random weights. *kept*: milliseconds
over those of the dense network, folded too, within a round: median and quartiles. *channels kept*: of all that layers
give. What selection is for, accuracy at a cost, this does not show: see accuracy.md."""


def work(model: str, macs: float, engines: Sequence[str], rounds: int) -> list[Json]:
    """Prune in all ways, and time."""
    import numpy as np
    import torch

    from secateur.backends.stopwatch import DeployedStopwatch
    from secateur.compiler import vision
    from secateur.compiler.capture import trace
    from secateur.compiler.cost import measure
    from secateur.passes.pipeline import PassPipeline
    from secateur.passes.prune.prune import Prune

    torch.set_num_threads(1)
    net = build(model)
    shape = vision.input_shapes(model, net)[0]
    settle(net, shape)
    program = trace(net, torch.zeros(shape))
    results = [Prune(macs=macs, scope="global", select=way).run(program) for way in WAYS]
    found: list[Json] = []
    for engine in engines:
        watch = DeployedStopwatch(engine, 1, 1, behind=PassPipeline.parse(CLEAN).passes)
        programs = [program, *(result.program for result in results)]
        times = np.concatenate([watch.compare(programs) for _ in range(-(-rounds // 30))])
        for index, (way, result) in enumerate(zip(WAYS, results, strict=True), start=1):
            found.append(
                {
                    "model": model,
                    "engine": engine,
                    "select": way,
                    "macs_kept": measure(result.program).macs / measure(program).macs,
                    "channels_kept": 1 - result.stats["removed"] / result.stats["channels"],
                    "slices": result.stats.get("slices", 0),
                    "gathers": result.stats.get("gathers", 0),
                    "dense_ms": 1e3 * float(np.median(times[:, 0])),
                    "ms": 1e3 * float(np.median(times[:, index])),
                    "kept": np.quantile(times[:, index] / times[:, 0], (0.25, 0.5, 0.75)).tolist(),
                }
            )
    return found


def report(head: Json, records: Sequence[Json]) -> list[str]:
    """Return selection.md."""
    columns = ("model", "engine", "select", "MACs kept %", "channels kept %", "slices", "gathers", "ms", "kept")
    rows = [
        [
            r["model"],
            r["engine"],
            r["select"],
            f"{100 * r['macs_kept']:.1f}",
            f"{100 * r['channels_kept']:.1f}",
            str(r["slices"]),
            str(r["gathers"]),
            f"{r['ms']:.2f}",
            f"{r['kept'][1]:.3f} [{r['kept'][0]:.3f}, {r['kept'][2]:.3f}]",
        ]
        for r in records
    ]
    legend = LEGEND.format(macs=head["macs"])
    return ["# Channel selection", "", *describe(head), "", legend, "", *table(columns, rows, left=3)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(MODELS), help="torchvision models")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--macs", type=float, default=0.5, help="fraction that is kept")
    parser.add_argument("--rounds", type=int, default=60, help="of the comparison, at least")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args()
    head = header(1, "onnx", "onnxruntime", "openvino") | {"macs": options.macs}
    records: list[Json] = []
    for model in options.only:
        print(f"{model} ...", file=sys.stderr, flush=True)
        records += work(model, options.macs, options.engines, options.rounds)
        write_results(options.out, NAME, {**head, "records": records}, report(head, records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
