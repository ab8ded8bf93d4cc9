"""CPU seconds of secateur and of torch-pruning on the same models, in one process, on one thread.

    python benchmarks/vs_torch_pruning.py [--only PATTERN] [--repeats 5] [--ratio 0.5]

Needs torch-pruning (`pip install -e '.[bench]'`). Writes results/vs_torch_pruning.json and results/vs_torch_pruning.md.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import RESULTS, Json, build, describe, header, percent, portable, table, write_results

if TYPE_CHECKING:
    import torch
    from torch import nn

MODELS = (
    "resnet18 resnet50 resnet101 wide_resnet50_2 resnext50_32x4d densenet121 mobilenet_v2 mobilenet_v3_large "
    "efficientnet_b0 efficientnet_v2_s mnasnet1_0 vgg16_bn alexnet squeezenet1_1 googlenet inception_v3 regnet_y_400mf "
    "convnext_tiny shufflenet_v2_x1_0 r3d_18 s3d fcn_resnet50 deeplabv3_resnet50 lraspp_mobilenet_v3_large"
).split()
Seconds = dict[str, float]
CLASSES = {21, 400, 1000}
"""Of PASCAL VOC, Kinetics and ImageNet."""

LEGEND = """\
CPU seconds (process time) to get from a dense model to one of which half of the channels are removed by L1 norm: the
median of {repeats} repetitions after a warm-up, the two taking turns, each on a fresh copy of the model made outside
the timing. Both get the same random model state and the same example input, of the model's default size.

- *torch-pruning*: `MagnitudePruner(model, x, GroupMagnitudeImportance(p=1), pruning_ratio={ratio:g},
  global_pruning=False, ignored_layers=[classifier])` and `.step()`. The constructor builds the dependency graph, for
  which it runs the model once forward. *graph* is that part, timed on its own with
  `DependencyGraph().build_dependency`, and is not counted twice.
- *secateur*: `trace(model, x)` and `Prune(ratio={ratio:g}, criterion="l1").run(program)`, which analyses. *analyse* is
  that part, timed on its own, and is not counted twice. Without the proof, which torch-pruning has no counterpart of.
- *ratio*: torch-pruning's total / secateur's total. *without forward*: the same with one forward pass, timed on its
  own, taken off torch-pruning's total: what is left does not depend on the size of the input.
- *params kept*: what each left of the parameters; the two round and couple differently. GoogLeNet's and Inception's
  auxiliary heads stay in torch-pruning's result, and are not part of secateur's.
"""


class NotPrunedError(Exception):
    """A tool did not produce a pruned model that runs."""


def torch_pruning(model: nn.Module, x: torch.Tensor, ratio: float) -> tuple[nn.Module, Seconds]:
    """Prune by torch-pruning, as its own examples do; returns the model and seconds by stage."""
    tp: Any = importlib.import_module("torch_pruning")
    ignored, transform = classifiers(model), transform_for(model)
    begin = time.process_time()
    pruner = tp.pruner.MagnitudePruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=ratio,
        global_pruning=False,
        ignored_layers=ignored,
        output_transform=transform,
    )
    built = time.process_time()
    pruner.step()
    done = time.process_time()
    return model, {"constructor": built - begin, "step": done - built, "total": done - begin}


def torch_pruning_graph(model: nn.Module, x: torch.Tensor) -> float:
    """Return the seconds that torch-pruning's dependency graph takes by itself."""
    tp: Any = importlib.import_module("torch_pruning")
    transform = transform_for(model)
    begin = time.process_time()
    tp.DependencyGraph().build_dependency(model, x, output_transform=transform)
    return time.process_time() - begin


def forward(model: nn.Module, x: torch.Tensor) -> float:
    """Return the seconds of one forward pass, with gradients recorded as torch-pruning needs them."""
    begin = time.process_time()
    model.eval()(x)
    return time.process_time() - begin


def classifiers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that produce classes, which torch-pruning has to be told to leave alone."""
    from torch import nn

    return [
        m
        for m in model.modules()
        if (isinstance(m, nn.Linear) and m.out_features in CLASSES)
        or (isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) and m.out_channels in CLASSES)
    ]


def transform_for(model: nn.Module) -> Callable[[Any], Any] | None:
    """Return what turns a segmentation model's outputs into a form that torch-pruning walks."""
    segmentation = type(model).__module__.startswith("torchvision.models.segmentation")
    return (lambda outputs: list(outputs.values())) if segmentation else None


def secateur(model: nn.Module, x: torch.Tensor, ratio: float) -> tuple[nn.Module, Seconds]:
    """Prune by secateur; returns the module and seconds by stage."""
    from secateur.compiler.capture import trace
    from secateur.passes.prune.prune import Prune

    begin = time.process_time()
    program = trace(model, x)
    traced = time.process_time()
    module = Prune(ratio=ratio, criterion="l1").run(program).program.module
    done = time.process_time()
    return module, {"trace": traced - begin, "prune": done - traced, "total": done - begin}


def secateur_analysis(model: nn.Module, x: torch.Tensor) -> float:
    """Return the seconds that the analysis takes by itself."""
    from secateur.compiler.analysis import analyze
    from secateur.compiler.capture import trace

    program = trace(model, x)
    begin = time.process_time()
    analyze(program)
    return time.process_time() - begin


def compare(name: str, ratio: float, repeats: int) -> Json:
    """Measure both tools on one model."""
    import torch

    from secateur.compiler import vision

    model = build(name)
    shape = vision.input_shapes(name, model)[0]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    dense = sum(p.numel() for p in model.parameters())
    tools: dict[str, Callable[[nn.Module, torch.Tensor, float], tuple[nn.Module, Seconds]]] = {
        "torch_pruning": torch_pruning,
        "secateur": secateur,
    }
    parts = {"torch_pruning": ("graph", torch_pruning_graph), "secateur": ("analyse", secateur_analysis)}
    record: Json = {"model": name, "input": list(shape), "params": dense}
    for tool, prune in list(tools.items()):  # the warm-up, which also shows whether a tool can do the model at all
        try:
            pruned, _ = prune(copy.deepcopy(model), x, ratio)
            kept = check(pruned, shape, dense)
            record[tool] = {"params_kept": kept}
        except Exception as error:
            first = portable(str(error)).partition("\n")[0]
            record[tool] = {"failed": f"{type(error).__name__}: {first[:300]}"}
            del tools[tool]
    samples: dict[str, list[Seconds]] = {tool: [] for tool in tools}
    passes: list[float] = []
    for repeat in range(repeats):
        for tool in tools if repeat % 2 == 0 else reversed(tools):
            part, measure = parts[tool]
            seconds = timed(lambda m, tool=tool: tools[tool](m, x, ratio)[1], model)
            own = timed(lambda m, measure=measure: measure(m, x), model)
            samples[tool].append({part: own, **seconds})
        passes.append(timed(lambda m: forward(m, x), model))
    for tool, found in samples.items():
        record[tool] |= {stage: statistics.median(s[stage] for s in found) for stage in found[0]}
        record[tool]["samples"] = [round(s["total"], 4) for s in found]
    record["forward"] = statistics.median(passes)
    if len(samples) == 2:
        theirs, ours = record["torch_pruning"]["total"], record["secateur"]["total"]
        record |= {"ratio": theirs / ours, "ratio_without_forward": (theirs - record["forward"]) / ours}
    return record


def timed(measure: Callable[[nn.Module], Any], model: nn.Module) -> Any:
    """Run on a fresh copy, with the garbage of earlier runs out of the way."""
    fresh = copy.deepcopy(model)
    gc.collect()
    return measure(fresh)


def check(pruned: nn.Module, shape: Sequence[int], dense: int) -> float:
    """Return the fraction of parameters kept, after running the pruned model once.

    Raises:
        NotPrunedError: It does not run, or nothing was removed.
    """
    import torch

    try:
        with torch.no_grad():
            pruned.eval()(torch.randn(tuple(shape)))
    except Exception as error:
        raise NotPrunedError(f"the pruned model does not run: {error}") from error
    kept = sum(p.numel() for p in pruned.parameters()) / dense
    if kept == 1:
        raise NotPrunedError("nothing was pruned")
    return kept


def row(record: Json) -> list[str]:
    theirs, ours = record["torch_pruning"], record["secateur"]

    def seconds(tool: Json, *stages: str) -> list[str]:
        return [f"{tool[s]:.3f}" if s in tool else "failed" for s in stages]

    return [
        record["model"],
        "x".join(map(str, record["input"][2:])),
        *seconds(theirs, "graph", "constructor", "step", "total"),
        *seconds(ours, "trace", "analyse", "prune", "total"),
        *(f"{record[r]:.1f}" if r in record else "-" for r in ("ratio", "ratio_without_forward")),
        percent(theirs.get("params_kept")),
        percent(ours.get("params_kept")),
    ]


def report(head: Json, records: Sequence[Json]) -> list[str]:
    """Return vs_torch_pruning.md."""
    lines = ["# secateur and torch-pruning: CPU seconds to prune", "", *describe(head), ""]
    ratios = {r["model"]: r["ratio"] for r in records if "ratio" in r}
    if ratios:
        worst, best = min(ratios, key=lambda n: ratios[n]), max(ratios, key=lambda n: ratios[n])
        median = statistics.median(ratios.values())
        bare = [r["ratio_without_forward"] for r in records if "ratio" in r]
        lines += [
            f"**secateur is {median:.1f} times as fast in the median of {len(ratios)} models, "
            f"{ratios[worst]:.1f} times in the worst ({worst}), {ratios[best]:.1f} times in the best ({best}).** "
            f"Without torch-pruning's forward pass: {statistics.median(bare):.1f} times in the median, "
            f"{min(bare):.1f} times in the worst.",
            "",
        ]
    lines.append(LEGEND.format(repeats=head["repeats"], ratio=head["ratio"]))
    columns = (
        "model", "input", "tp graph", "tp constructor", "tp step", "tp total", "trace", "analyse", "prune",
        "secateur total", "ratio", "without forward", "tp params kept %", "secateur params kept %",
    )  # fmt: skip
    lines += table(columns, [row(r) for r in records])
    failures = [
        (r["model"], t, r[t]["failed"]) for r in records for t in ("torch_pruning", "secateur") if "failed" in r[t]
    ]
    if failures:
        lines += ["", "## What failed", "", *(f"- {model}, {tool}: {reason}" for model, tool, reason in failures)]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="models by name, with * and ?")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ratio", type=float, default=0.5, help="fraction of the channels removed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args()
    try:
        import torch

        importlib.import_module("torch_pruning")  # an extra, unknown to the type checker
    except ImportError as error:
        print(f"{error}: pip install -e '.[bench]'", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    head = header(1, "torch-pruning") | {"repeats": options.repeats, "ratio": options.ratio}
    records: list[Json] = []
    for name in MODELS:
        if options.only and not any(fnmatch(name, pattern) for pattern in options.only):
            continue
        record = compare(name, options.ratio, options.repeats)
        records.append(record)
        print("  ".join(row(record)), flush=True)
        for tool in ("torch_pruning", "secateur"):
            if "failed" in record[tool]:
                print(f"    {tool}: {record[tool]['failed']}", flush=True)
    write_results(options.out, "vs_torch_pruning", {**head, "models": records}, report(head, records))
    return int(any("failed" in r["secateur"] for r in records))


if __name__ == "__main__":
    sys.exit(main())
