"""Pruning torchvision's detection models by regions: what is prunable, what is kept, the proof, and a training step.

    python benchmarks/detectors.py                                  # all, a process each: some ten minutes
    python benchmarks/detectors.py --only 'ssd*' --macs 0.5

Random weights, one image of 3 x 320 x 320, one thread. Writes results/detectors.json and results/detectors.md; models
that are not run again keep their results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from common import RESULTS, Json, describe, header, percent, portable, provenance, single_threaded, table
from common import write_results as write

NAME = "detectors"
PREFIXES = "fasterrcnn maskrcnn keypointrcnn retinanet ssd fcos".split()
SIZE = 320
LEAST = 0.9
"""Of the convolutions' MACs, that must be prunable."""
FEW = {
    "rpn_post_nms_top_n_test": 100,
    "rpn_post_nms_top_n_train": 100,
    "box_batch_size_per_image": 8,
    "box_detections_per_img": 20,
}
"""Options of two-stage detectors: without C++ operators, RoI pooling of a thousand boxes takes gigabytes."""

LEGEND = """\
`prune{{macs={macs:g}}}` by `secateur.prune_regions`, random weights, one image of 3 x {size} x {size}. *prunable*: the
share of the convolutions' MACs in layers of which some input or output channel may go (*all*: of every layer's).
*proof*: relative error in float64 of the program of all regions against its masked original. *agreement*: the largest
relative difference in float64 between what the model's own code computes with the pruned layers and that program.
*trains*: a step with targets gives every parameter that has a gradient in the original one here too. Two-stage
detectors propose 100 boxes."""


def names() -> list[str]:
    from secateur.compiler import vision

    return [name for name in vision.model_names() if name.startswith(tuple(PREFIXES))]


def work(name: str, macs: float) -> Json:
    """Prune one detector; runs in a process of its own."""
    import torch

    import secateur
    from secateur.compiler import vision

    torch.set_num_threads(1)
    torch.manual_seed(0)
    two_stage = "rcnn" in name
    models = vision.import_torchvision().models
    model = models.get_model(name, weights=None, weights_backbone=None, **(FEW if two_stage else {})).eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, SIZE, SIZE, generator=generator)
    begin = time.perf_counter()
    pruned, report = secateur.prune_regions(model, ([image],), f"prune{{macs={macs:g}}}")
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        expected, found = model([image])[0], pruned([image])[0]
    lost = without_gradient(pruned, name) - without_gradient(model, name)
    proof: dict[str, Any] = report.verification or {}
    return {
        "seconds": round(seconds, 1),
        "timings": {key: round(value, 2) for key, value in report.timings.items()},
        "regions": len(report.regions),
        "rewritten": list(report.rewritten),
        "borders": len(report.borders),
        "prunable": report.prunable,
        "prunable_convolutions": report.prunable_convolutions,
        "macs": report.macs_before,
        "macs_kept": report.macs_after / report.macs_before,
        "params_kept": report.params_after / report.params_before,
        "proof": proof.get("max_relative_error", proof.get("error")),
        "agreement": report.agreement,
        "same_class": type(pruned) is type(model) and set(expected) == set(found),
        "lost_gradients": sorted(lost)[:5],
    }


def without_gradient(model: Any, name: str) -> set[str]:
    """Take a training step with targets; return the parameters that get no gradient."""
    import torch

    torch.manual_seed(0)
    images = [torch.rand(3, SIZE, SIZE) for _ in range(2)]
    boxes = torch.tensor([[40.0, 40.0, 200.0, 220.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1])}
    if name.startswith("maskrcnn"):
        target["masks"] = torch.ones(1, SIZE, SIZE, dtype=torch.uint8)
    if name.startswith("keypointrcnn"):
        target["keypoints"] = torch.tensor([[[100.0, 100.0, 1.0]] * 17])
    model.train()
    model.zero_grad()
    losses = model(images, [dict(target) for _ in images])
    torch.stack(list(losses.values())).sum().backward()
    model.eval()
    return {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}


def report(head: Mapping[str, Any], records: Sequence[Json]) -> list[str]:
    """Return detectors.md."""
    good = [r for r in records if "failed" not in r]
    lines = ["# Detectors, by regions", "", *describe(head), ""]
    lines += [f"- **NO**: {r['model']}: {r['failed']}" for r in records if "failed" in r]
    if good:
        least = min(good, key=lambda r: r["prunable_convolutions"])
        answer = "yes" if least["prunable_convolutions"] >= LEAST else "NO"
        text = f"least: {percent(least['prunable_convolutions'])}, {least['model']}"
        lines.append(f"- **{answer}**: at least {percent(LEAST)} of the convolutions' MACs are prunable ({text})")
        whole = all(r["same_class"] and not r["lost_gradients"] and r["proof"] <= 1e-9 for r in good)
        claim = "the result is of the same class, gives the same kind of output, trains with targets, and is proven"
        lines.append(f"- **{'yes' if whole else 'NO'}**: {claim} ({len(good)} models)")
    columns = (
        "model",
        "G MACs",
        "regions",
        "prunable %",
        "all %",
        "MACs kept %",
        "params kept %",
        "proof",
        "agreement",
        "trains",
        "s",
    )
    rows = [
        [
            r["model"],
            f"{r['macs'] / 1e9:.2f}",
            str(r["regions"]),
            f"{100 * r['prunable_convolutions']:.1f}",
            f"{100 * r['prunable']:.1f}",
            f"{100 * r['macs_kept']:.1f}",
            f"{100 * r['params_kept']:.1f}",
            f"{r['proof']:.1e}",
            f"{r['agreement']:.1e}",
            "yes" if not r["lost_gradients"] else "NO",
            f"{r['seconds']:.0f}",
        ]
        for r in good
    ]
    return [*lines, "", LEGEND.format(macs=head["macs"], size=SIZE), "", *table(columns, rows)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="*", metavar="PATTERN")
    parser.add_argument("--macs", type=float, default=0.5, help="fraction that is kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    parser.add_argument("--work", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.work:
        print(json.dumps(work(options.work, options.macs)))
        return 0
    head = header(1) | {"macs": options.macs}
    path = options.out / f"{NAME}.json"
    known: list[Json] = json.loads(path.read_text(encoding="utf-8"))["records"] if path.exists() else []
    records = {r["model"]: r for r in known}
    for name in (n for n in names() if fnmatch(n, options.only)):
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, str(Path(__file__)), "--work", name, "--macs", str(options.macs)]
        done = subprocess.run(command, capture_output=True, text=True, env=single_threaded(), check=False)
        found = (
            {"failed": portable((done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1])[:300]}
            if done.returncode
            else json.loads(done.stdout.splitlines()[-1])
        )
        records[name] = {"model": name, **found, **provenance()}
        ordered = [records[key] for key in sorted(records)]
        write(options.out, NAME, {**head, "records": ordered}, report(head, ordered))
    return int(any("failed" in r for r in records.values()))


if __name__ == "__main__":
    sys.exit(main())
