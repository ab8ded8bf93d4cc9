"""Detectors in coverage.py: what coverage_worker.py does with models that are traced as a whole, region by region.

Images of 3 x 320 x 320, which the detectors' own transforms are told not to enlarge.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Json, artefact_size, single_threaded

if TYPE_CHECKING:
    from coverage_worker import Run
    from torch import Tensor, nn

    from secateur.backends.regional.compile import CompiledRegions
    from secateur.compiler.program import Program

SIZE = 320
OPERATORS = Path(__file__).resolve().parent.parent / "compiler" / "torchvision_ops.py"


def shrink(model: nn.Module) -> None:
    """Let a detector's transform leave images of SIZE as they are."""
    transform: Any = getattr(model, "transform", None)
    if transform is not None and transform.fixed_size is None:
        transform.min_size, transform.max_size = (SIZE,), SIZE


def run(self: Run, model: nn.Module) -> None:
    """Do all that Run does once the model is built."""
    import torch

    from secateur.backends.inputs import ModelInput
    from secateur.backends.regional.compile import compile_regions
    from secateur.backends.regional.prune import check_regions_program
    from secateur.compiler import analysis
    from secateur.compiler.regions import find_regions
    from secateur.passes.pipeline import PassPipeline

    shape = (1, 3, SIZE, SIZE)
    spec = {"kind": "torchvision", "model": self.name, "weights": "none", "seed": 0}
    given = ModelInput(model, type(model).__name__, (shape,), (), spec, random=True)
    pipeline = PassPipeline.parse(f"prune{{macs={self.macs:g}}}")
    self.record |= {"input": list(shape), "check_input": list(shape)}
    images = [torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))]
    with self.timed("trace"):
        regions = find_regions(model, images)
    with self.timed("analyse"):
        deps = analysis.analyze(regions.program)
    with self.timed("prune"):
        result = pipeline.run(regions.program)
    with self.timed("compile"):
        compiled = compile_regions(given, pipeline, verify=False)
    self.note_memory("after_compile")
    told = compiled.report
    self.count(regions.program, deps, told["before"], told["after"], result.remarks, told["notes"])
    self.record["sensitivity"] = sensitivity(regions.program)
    with self.timed("verify"):
        (checked,) = check_regions_program(regions.program, result, 0, lambda text: None)
    assert checked.proof is not None
    self.note_proof(checked.proof)
    self.record["agreement"] = told["regions"]["agreement"]
    self.record["emit"] = emit(self, compiled)
    with self.timed("train"):
        self.record["train"] = train(self.name, model, compiled.module)


def sensitivity(program: Program) -> float:
    """Return by how much what the regions give differs for two random inputs, relative to the largest number."""
    import torch

    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(2, *spec.shape[1:], generator=generator) for spec in program.inputs]
    with torch.no_grad():
        outputs: Sequence[Tensor] = program.module.eval()(*inputs)
    return max(float((o[0] - o[1]).abs().max() / o.abs().max()) for o in outputs if len(o) == 2)


def emit(self: Run, compiled: CompiledRegions) -> Json:
    """Write the artefact, load it in a process without secateur, and compare what it finds in two images."""
    import torch

    images = [torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text) / "artefact"
        with self.timed("save"):
            compiled.save(folder)
        files = artefact_size(folder)
        with torch.no_grad():
            found = compiled.module.eval()(images)
        torch.save({"inputs": images, "outputs": found}, folder / "io.pt")
        script = Path(__file__).with_name("reload_check.py")
        command = [sys.executable, "-I", str(script), str(folder), "--list", str(OPERATORS)]
        with self.timed("reload", wall=True):
            done = subprocess.run(command, capture_output=True, text=True, env=single_threaded(), check=False)
    if done.returncode:
        raise RuntimeError("the emitted model does not load: " + " ".join(done.stderr.splitlines()[-3:]))
    return {**files, "dtype": "float32", **json.loads(done.stdout.splitlines()[-1])}


def train(name: str, model: nn.Module, compact: nn.Module) -> Json:
    """Take a training step with targets; where a parameter gets no gradient, try the original too."""
    found = step(name, compact)
    if found["without_gradient"]:
        without = step(name, model)["without_gradient"]
        found["without_gradient_in_original_too"] = [n for n in found["without_gradient"] if n in without]
    return found


def step(name: str, model: nn.Module) -> Json:
    """Run forward and backward in training mode on two images with targets."""
    import torch

    torch.manual_seed(0)
    images = [torch.rand(3, SIZE, SIZE) for _ in range(2)]
    target = {"boxes": torch.tensor([[40.0, 40.0, 200.0, 220.0]]), "labels": torch.tensor([1])}
    if name.startswith("maskrcnn"):
        target["masks"] = torch.ones(1, SIZE, SIZE, dtype=torch.uint8)
    if name.startswith("keypointrcnn"):
        target["keypoints"] = torch.tensor([[[100.0, 100.0, 1.0]] * 17])
    model.train()
    model.zero_grad()
    losses: dict[str, Tensor] = model(images, [dict(target) for _ in images])
    loss = torch.stack(list(losses.values())).sum()
    loss.backward()
    model.eval()
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return {
        "trainable": len(trainable),
        "without_gradient": [name for name, p in trainable if p.grad is None],
        "not_finite": [name for name, p in trainable if p.grad is not None and not bool(p.grad.isfinite().all())],
        "loss": float(loss.detach()),
    }
