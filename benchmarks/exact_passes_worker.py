"""One model of exact_passes.py, in a process of its own: clean it up, fold its batch norms, and prove that exact.

    python benchmarks/exact_passes_worker.py MODEL [--data DIR]

Prints lines of JSON: {"stage": ...} as each stage begins, and at the end {"record": ...}.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import CIFAR_INPUT, CIFAR_PREFIX, Json, build, cifar_files, cifar_resnet, portable, resident, settle
from coverage_worker import SENSITIVITY, TOLERANCE, Shapes, check_shapes, sensitivity

if TYPE_CHECKING:
    from torch import nn

    from secateur.compiler.program import Program

PIPELINE = "eliminate-identity,fold-constants,fold-bn"
DEAD = "eliminate-dead-channels"
DEAD_SHARE = 0.125
"""Of the channels of batch norms, linear layers and attention, switched off for the second run: random states have no
dead channels of their own."""


class Run:
    """Rewrites one model stage by stage; ``record`` fills as it goes, so a failure leaves what was found before."""

    def __init__(self, name: str, data: Path) -> None:
        self.name, self.data = name, data
        self.record: Json = {"model": name, "status": "failed", "seconds": {}}
        self.stage = "start"

    def run(self) -> Json:
        """Run all stages; a failure ends in the record, with the stage and the reason."""
        begin = time.perf_counter()
        try:
            self._run()
            self.record["status"] = "ok" if not self.record["problems"] else "failed"
        except Exception as error:
            trace = traceback.extract_tb(error.__traceback__)
            self.record["problems"] = [f"{self.stage}: {type(error).__name__}: {portable(str(error))[:500]}"]
            self.record["traceback_end"] = [f"{portable(f.filename)}:{f.lineno} {f.name}: {f.line}" for f in trace[-4:]]
        self.record["peak"] = resident()["peak"]
        self.record["wall_seconds"] = round(time.perf_counter() - begin, 2)
        return self.record

    def _run(self) -> None:
        with self._timed("import"):
            import torch

            from secateur.passes.catalog import PASSES

            torch.set_num_threads(1)
        with self._timed("build"):
            model, shapes = self._model()
        self.record |= {"input": list(shapes[0]), "sensitivity": sensitivity(model, shapes)}
        self.record |= self._rewrite(model, shapes, PIPELINE, "")
        self.record["dead"] = None
        if DEAD in PASSES and (switched_off := switch_off(model, DEAD_SHARE)):
            # In front of fold-bn, since a layer that took in a scale of 0 is no easier to see through.
            pipeline = PIPELINE.replace("fold-bn", f"{DEAD},fold-bn")
            gc.collect()  # a module and its graph refer to each other: what the first run made would stay in memory
            found = self._rewrite(model, shapes, pipeline, "dead ")
            self.record["dead"] = {"switched_off": switched_off, **found}
        self.record["problems"] = problems(self.record)

    def _model(self) -> tuple[nn.Module, Shapes]:

        from secateur.compiler import vision

        if self.name.startswith(CIFAR_PREFIX):
            return cifar_resnet(cifar_files(self.data)[self.name]), (CIFAR_INPUT,)
        model = build(self.name)
        small = check_shapes(self.name, vision.input_shapes(self.name, model))
        return settle(model, *small), small

    def _rewrite(self, model: nn.Module, shapes: Shapes, pipeline: str, title: str) -> Json:
        """Run a pipeline; return what it made, and how exact that is."""
        import torch

        from secateur.backends import checks
        from secateur.compiler import capture
        from secateur.passes.base import RemarkKind
        from secateur.passes.pipeline import PassPipeline

        with self._timed(f"{title}trace"):
            original = capture.trace(model, [torch.zeros(shape) for shape in shapes])
        with self._timed(f"{title}rewrite"):
            result = PassPipeline.parse(pipeline).run(original)
        with self._timed(f"{title}prove"):
            found = checks.check(original, result.steps, result.program.module)
        proofs = [c.proof for c in found if c.proof is not None]
        missed = [r for r in result.remarks if r.kind is RemarkKind.MISSED and r.pass_name == "fold-bn"]
        before, after = count(original), count(result.program)
        return {
            "pipeline": pipeline,
            "nodes": [before["nodes"], after["nodes"]],
            "batch_norms": [before["batch_norms"], after["batch_norms"]],
            "left": dict(Counter(shorten(r.reason) for r in missed).most_common()),
            "passes": {step.text: dict(step.stats) for step in result.steps},
            "refused": [f"{r.pass_name}: {r.node}: {r.reason}" for r in result.remarks if r.kind is RemarkKind.MISSED],
            "error": max(proof.error for proof in proofs),
            "vacuous": any(proof.vacuous for proof in proofs),
            "trials": [[list(t.shapes[0]) for t in proof.trials if t.decides] for proof in proofs],
            "noise": max((t.noise for proof in proofs for t in proof.trials), default=0.0),
        }

    @contextmanager
    def _timed(self, stage: str) -> Generator[None]:
        self.stage = stage
        print(json.dumps({"stage": stage}), flush=True)
        begin = time.process_time()
        try:
            yield
        finally:
            self.record["seconds"][stage] = round(time.process_time() - begin, 3)


def count(program: Program) -> Json:
    """Count operations, and batch norms among them."""
    from secateur.compiler.ops import normalise

    calls = [node for node in program.graph.nodes if node.op.startswith("call_")]
    norms = sum(normalise(program, node).key == "batch_norm" for node in calls)
    return {"nodes": len(calls), "batch_norms": norms}


def switch_off(model: nn.Module, share: float) -> int:
    """Set the rows of some channels to 0, in place, as slimming and soft pruning do; return how many."""
    import torch
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    generator = torch.Generator().manual_seed(0)
    switched = 0
    for layer in model.modules():
        names = ("in_proj_weight", "in_proj_bias") if isinstance(layer, nn.MultiheadAttention) else ("weight", "bias")
        rows = [getattr(layer, name, None) for name in names]
        if isinstance(layer, (_BatchNorm, nn.Linear, nn.MultiheadAttention)) and rows[0] is not None:
            dead = torch.randperm(len(rows[0]), generator=generator)[: int(share * len(rows[0]))]
            for parameter in rows:
                if parameter is not None:
                    parameter.data[dead] = 0
            switched += len(dead)
    return switched


def shorten(reason: str) -> str:
    """Leave out of a reason which layer it is about, so that equal reasons can be counted."""
    text = reason.removeprefix("stays: ")
    text = re.sub(r"'(\w+)' \([\w.]+\)", lambda m: m[1].lower(), text)
    text = re.sub(r"\b(feeds|follows) [\w.]+(?:[_.]\w+)+, which", r"\1 a layer that", text)
    text = re.sub(r"^[\w.]+ also feeds .*?(?=;|$)", "its layer feeds others too", text)
    return text.replace(", which takes in no scale", "").replace("it ", "")


def problems(record: Json) -> list[str]:
    """Return in words which of the demands a finished record does not meet."""
    found: list[str] = []
    runs: Sequence[tuple[str, Any]] = [("", record), ("with dead channels: ", record["dead"])]
    for title, run in runs:
        if run is None:
            continue
        left = sum(run["left"].values())
        demands = {
            f"the error is {run['error']:.2g}": run["error"] <= TOLERANCE,
            "not every stretch was proven on two batches": all(len({s[0] for s in t}) == 2 for t in run["trials"]),
            "the proof is vacuous": not run["vacuous"],
            f"{run['batch_norms'][1]} batch norms stay, and {left} reasons are given": left == run["batch_norms"][1],
        }
        found += [title + text for text, met in demands.items() if not met]
    if record["sensitivity"] < SENSITIVITY:
        found.append(f"the original's output hardly depends on its input ({record['sensitivity']:.2g})")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the exact passes on one model and check them.")
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(json.dumps({"record": Run(options.model, options.data).run()}), flush=True)


if __name__ == "__main__":
    main()
