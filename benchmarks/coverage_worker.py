"""One model of coverage.py, in a process of its own: compile it, prove it, train it, emit it and load it elsewhere.

    python benchmarks/coverage_worker.py MODEL [--macs 0.5] [--data DIR]
    python benchmarks/coverage_worker.py --list

Prints lines of JSON: {"stage": ...} as each stage begins, and at the end {"record": ...}.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import coverage_regions
from common import (
    CIFAR_INPUT,
    CIFAR_PREFIX,
    DETECTORS,
    Json,
    artefact_size,
    build,
    cifar_files,
    cifar_resnet,
    portable,
    resident,
    settle,
    single_threaded,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from secateur.backends.compile import Compiled
    from secateur.compiler.dependency import ChannelDependencies
    from secateur.compiler.program import Program
    from secateur.compiler.proof import Proof
    from secateur.passes.base import Remark

Shapes = tuple[tuple[int, ...], ...]

TOLERANCE = 1e-9
RELOAD_TOLERANCE = 1e-12
SENSITIVITY = 1e-3
"""Demanded of the random states: a proof on a model that ignores its input would say nothing."""
BUDGET_TOLERANCE = 0.01
CHECK_SIZE = 96
WHOLE_SIZE = ("vgg", "alexnet", "s3d", "inception", "cifar_", "vit", "swin", "maxvit", "mvit", "raft")
"""Models that are checked at the size for which they are counted: their heads do not take a smaller one sensibly, or
they compute with sizes."""


class Run:
    """Compiles one model stage by stage; ``record`` fills as it goes, so a failure leaves what was found before."""

    def __init__(self, name: str, macs: float, data: Path) -> None:
        self.name, self.macs, self.data = name, macs, data
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
        self.record["memory"]["peak"] = resident()["peak"]
        self.record["wall_seconds"] = round(time.perf_counter() - begin, 2)
        return self.record

    def _run(self) -> None:
        with self.timed("import"):
            import torch

            importlib.import_module("secateur.backends.compile")
            importlib.import_module("secateur.backends.regional.compile")

            torch.set_num_threads(1)
        self.record["memory"] = {"after_imports": resident()["now"]}
        with self.timed("build"):
            model, shapes = self._model()
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        self.record["memory"] |= {"model": size, "after_build": resident()["peak"]}
        if self.name.startswith(DETECTORS):
            coverage_regions.run(self, model)
        else:
            self._whole(model, shapes)
        self.record["problems"] = problems(self.record, self.macs)

    def _whole(self, model: nn.Module, shapes: Shapes) -> None:
        import torch

        from secateur.backends.compile import compile
        from secateur.compiler import analysis, capture, cost, proof
        from secateur.passes.prune.prune import Prune

        self.record["input"] = list(shapes[0])
        examples = [torch.zeros(shape) for shape in shapes]
        with self.timed("trace"):
            program = capture.trace(model, examples)
        with self.timed("analyse"):
            deps = analysis.analyze(program)
        with self.timed("prune"):
            remarks = Prune(macs=self.macs).run(program).remarks
        with self.timed("compile"):
            compiled = compile(program, pipeline=f"prune{{macs={self.macs:g}}}", verify=False)
        self.note_memory("after_compile")
        before, after = (vars(cost.measure(p)) for p in (program, compiled.program))
        self.count(program, deps, before, after, remarks, program.notes)
        small = check_shapes(self.name, shapes)
        self.record["check_input"] = list(small[0])
        self.record["sensitivity"] = sensitivity(model, small)
        specs = tuple(dataclasses.replace(s, shape=shape) for s, shape in zip(program.inputs, small, strict=True))
        with self.timed("verify"):
            checked = dataclasses.replace(program, inputs=specs)
            self.note_proof(proof.prove(checked, compiled.module, compiled.plan))
        self.record["emit"] = self._emit(compiled, small)
        with self.timed("train"):
            self.record["train"] = self._train(model, compiled.module, small)

    def note_memory(self, stage: str) -> None:
        """Note the peak so far."""
        self.record["memory"][stage] = resident()["peak"]

    def count(
        self,
        program: Program,
        deps: ChannelDependencies,
        before: Mapping[str, int],
        after: Mapping[str, int],
        remarks: Iterable[Remark],
        notes: Iterable[str],
    ) -> None:
        """Note what was there, and what is left of it."""
        self._start("count")
        self.record |= {
            "params": before["params"],
            "macs": before["macs"],
            "params_kept": after["params"] / before["params"],
            "macs_kept": after["macs"] / before["macs"],
            "prunable_macs": prunable_share(program, deps),
            "remarks": [f"{r.kind.value}: {r.node}: {r.reason}" for r in remarks],
            "notes": list(notes),
        }

    def note_proof(self, proven: Proof) -> None:
        """Note the largest error, and those of all batches."""
        self.record["proof"] = {
            "error": proven.error,
            "vacuous": proven.vacuous,
            "trials": [{"input": list(t.shapes[0]), "error": t.relative, "scale": t.scale} for t in proven.trials],
        }

    def _model(self) -> tuple[nn.Module, Shapes]:

        from secateur.compiler import vision

        if self.name.startswith(CIFAR_PREFIX):
            self.record["state"] = "trained"
            return cifar_resnet(cifar_files(self.data)[self.name]), (CIFAR_INPUT,)
        self.record["state"] = "random"
        model = build(self.name)
        coverage_regions.shrink(model)
        shapes = vision.input_shapes(self.name, model)
        return settle(model, *check_shapes(self.name, shapes)), shapes

    def _emit(self, compiled: Compiled, shapes: Shapes) -> Json:
        """Write model.py and weights, load them in a fresh process, and compare outputs."""
        import torch

        with tempfile.TemporaryDirectory() as text:
            folder = Path(text) / "artefact"
            with self.timed("save"):
                compiled.save(folder)
            files = artefact_size(folder)
            with self.timed("reload", wall=True):
                module = compiled.module.eval()
                found = reload_elsewhere(folder, module, torch.float32, shapes)
                if found["error"] != 0:
                    found = {
                        **reload_elsewhere(folder, copy.deepcopy(module), torch.float64, shapes),
                        "float32_error": found["error"],
                    }
        return {**files, **found}

    def _train(self, model: nn.Module, compact: nn.Module, shapes: Shapes) -> Json:
        """Take a training step of the compact module; where a parameter gets no gradient, try the original too."""
        found = step(compact, shapes)
        if found["without_gradient"]:
            original = step(model, shapes)
            found["without_gradient_in_original_too"] = [
                name for name in found["without_gradient"] if name in original["without_gradient"]
            ]
        return found

    def _start(self, stage: str) -> None:
        self.stage = stage
        print(json.dumps({"stage": stage}), flush=True)

    @contextmanager
    def timed(self, stage: str, *, wall: bool = False) -> Generator[None]:
        self._start(stage)
        clock: Callable[[], float] = time.perf_counter if wall else time.process_time
        begin = clock()
        try:
            yield
        finally:
            self.record["seconds"][stage] = round(clock() - begin, 3)


def check_shapes(name: str, shapes: Shapes) -> Shapes:
    """Return the shapes on which proof and training step run."""
    return tuple(tuple(check_shape(name, shape)) for shape in shapes)


def check_shape(name: str, shape: tuple[int, ...]) -> Iterator[int]:
    """Yield the shape on which proof and training step run: smaller than the one counted, where that makes sense."""
    video = len(shape) == 5
    for axis, size in enumerate(shape):
        if axis < 2 or name.removeprefix("quantized_").startswith(WHOLE_SIZE):
            yield size
        else:
            yield min(size, 8 if video and axis == 2 else 64 if video else CHECK_SIZE)


def prunable_share(program: Program, deps: ChannelDependencies) -> float:
    """Return the share of the MACs that is in layers of which some input or output channel may be removed."""
    import numpy as np

    from secateur.compiler.cost import layer_costs, products

    free = np.zeros(int(deps.class_of.max()) + 1, dtype=np.bool_)
    for group in deps.groups:
        for block in group.blocks:
            if block.levels > 1:
                free[block.classes[~block.pinned]] = True
    layers: set[str] = set()
    for use in deps.slices:
        if free[deps.class_of[use.atoms.ravel()]].any():
            layers |= {use.node, use.name.rpartition(".")[0]}
    for product in products(program):
        inside = [deps.labels_of(product.operand).factor_at(axis) for axis in product.summed]
        factors = [f for f in (*inside, *deps.labels_of(product.node).factors) if f is not None]
        if any(free[deps.class_of[factor.atoms.ravel()]].any() for factor in factors):
            layers.add(product.node.name)
    costs = layer_costs(program)
    return sum(c.macs for c in costs if c.layer in layers) / max(sum(c.macs for c in costs), 1)


def noise(shapes: Shapes, seed: int) -> list[torch.Tensor]:
    """Return a random batch of two."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, *shape[1:], generator=generator) for shape in shapes]


def sensitivity(model: nn.Module, shapes: Shapes) -> float:
    """Return by how much the outputs of two random inputs differ, relative to the largest output."""
    import torch

    with torch.no_grad():
        outputs = named(model(*noise(shapes, 2)))
    return max(float((o[0] - o[1]).abs().max() / o.abs().max()) for o in outputs.values())


def step(module: nn.Module, shapes: Shapes) -> Json:
    """Run forward and backward in training mode on a random batch of two."""
    import torch

    module.train()
    module.zero_grad()
    torch.manual_seed(0)
    outputs = named(module(*noise(shapes, 0)))
    # Random weights, since a plain sum over channels would cancel after a normalisation.
    loss = sum(((o * torch.randn_like(o)).sum() for o in outputs.values()), torch.zeros(()))
    cast("Any", loss).backward()
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return {
        "trainable": len(trainable),
        "without_gradient": [name for name, p in trainable if p.grad is None],
        "not_finite": [name for name, p in trainable if p.grad is not None and not bool(p.grad.isfinite().all())],
        "loss": float(loss.detach()),
    }


def reload_elsewhere(folder: Path, module: nn.Module, dtype: torch.dtype, shapes: Shapes) -> Json:
    """Load the emitted model in a fresh process without secateur and torchvision; return what that process found."""
    import torch

    inputs = [x.to(dtype) for x in noise(shapes, 1)]
    with torch.no_grad():
        outputs = {name: t.clone() for name, t in named(module.to(dtype)(*inputs)).items()}
    torch.save({"inputs": inputs, "outputs": outputs}, folder / "io.pt")
    script = Path(__file__).with_name("reload_check.py")
    done = subprocess.run(
        [sys.executable, "-I", str(script), str(folder)], capture_output=True, text=True, env=single_threaded()
    )
    if done.returncode:
        raise RuntimeError("the emitted model does not load: " + " ".join(done.stderr.splitlines()[-3:]))
    return {"dtype": str(dtype).removeprefix("torch."), **json.loads(done.stdout.splitlines()[-1])}


def named(value: object) -> dict[str, torch.Tensor]:
    """Return a model's outputs by name."""
    if isinstance(value, dict):
        return cast("dict[str, torch.Tensor]", value)
    several = value if isinstance(value, tuple | list) else [value]
    return {str(i): cast("torch.Tensor", t) for i, t in enumerate(cast("list[object]", several))}


def problems(record: Json, macs: float) -> list[str]:
    """Return in words which of the demands a finished record does not meet."""
    proof, emit, train = record["proof"], record["emit"], record["train"]
    sens = record["sensitivity"]
    same = emit["error"] == 0 or (emit["dtype"] == "float64" and emit["error"] <= RELOAD_TOLERANCE * emit["scale"])
    lost = set(train["without_gradient"]) - set(train.get("without_gradient_in_original_too", ()))
    demands = {
        f"the proof's error is {proof['error']:.2g}": proof["error"] <= TOLERANCE,
        f"only {len(proof['trials'])} batch was proven": len(proof["trials"]) == 2,
        f"the original's output hardly depends on its input ({sens:.2g})": sens >= SENSITIVITY and not proof["vacuous"],
        f"{percent_of(record['macs_kept'])} of the MACs are kept": abs(record["macs_kept"] - macs) <= BUDGET_TOLERANCE,
        f"the reloaded model's outputs differ by {emit['error']:.2g} ({emit['dtype']})": same,
        "the process that reloads can import secateur": "secateur" in emit["blocked"],
        "the process that reloads can import torchvision": "torchvision" in emit["blocked"] or "agreement" in record,
        f"the process that reloads imported {emit['loaded']}": not emit["loaded"],
        f"no gradient in {sorted(lost)[:5]}, unlike the original": not lost,
        f"gradients that are not finite in {train['not_finite'][:5]}": not train["not_finite"],
    }
    return [text for text, met in demands.items() if not met]


def percent_of(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def sizes() -> dict[str, int]:
    """Return the published number of parameters of every torchvision model."""
    from secateur.compiler import vision

    models = vision.import_torchvision().models
    return {name: models.get_model_weights(name).DEFAULT.meta["num_params"] for name in vision.model_names()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile and check one model.")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--list", action="store_true", help="print the models that there are, with their parameters")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.list or not options.model:
        print(json.dumps(sizes()))
    else:
        print(json.dumps({"record": Run(options.model, options.macs, options.data).run()}), flush=True)


if __name__ == "__main__":
    main()
