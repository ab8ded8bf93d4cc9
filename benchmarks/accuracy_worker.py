"""One model of accuracy.py, in a process of its own: pruned in several ways at equal MACs, top-1 of each.

    python benchmarks/accuracy_worker.py MODEL --images DIR --job METHOD@MACS@SEED [--job ...]
    python benchmarks/accuracy_worker.py MODEL --images DIR --adapt FILE

DIR holds train/ and test/ with a folder per class. Prints lines of JSON: {"stage": ...} as each stage begins, and
{"record": ...} after each job. With --adapt, trains the published network on the compressed training images for a short
while, and writes its weights.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib
import json
import resource
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from common import CIFAR_INPUT, Json, cifar_resnet, portable
from deploy_worker import announce
from int8_accuracy_worker import MEAN, STD

if TYPE_CHECKING:
    import torch
    from torch import nn

    Batches = Sequence[tuple[torch.Tensor, torch.Tensor]]

PLAIN: Final = "l1 l2 fpgm bn-scale taylor fisher apoz mean-activation chip reconstruction random".split()
FREE: Final = "data-free"
REPAIR: Final = "reconstruct,reconstruct-blocks"
ADAPTED: Final = "_jpeg"
"""Behind the name of a network that was adapted to compressed images."""
PIPELINES: Final = {
    "best": f"prune{{macs=MACS criterion=reconstruction scope=knapsack select=paying}},{REPAIR}",
    "best without selection": f"prune{{macs=MACS criterion=reconstruction scope=knapsack}},{REPAIR}",
    "best without blocks": "prune{macs=MACS criterion=reconstruction scope=knapsack select=paying},reconstruct",
    FREE: "prune{macs=MACS criterion=fpgm scope=knapsack},absorb",
    **{name: f"prune{{macs=MACS criterion={name}}}" for name in PLAIN},
    **{f"{name} + reestimate-bn": f"prune{{macs=MACS criterion={name}}},reestimate-bn" for name in PLAIN},
}
"""Methods of secateur by name; the budget stands where MACS does."""
TP: Final = "torch-pruning "
TP_CRITERIA: Final = {
    "l1": ("GroupMagnitudeImportance", {"p": 1}),
    "l2": ("GroupMagnitudeImportance", {"p": 2}),
    "taylor": ("GroupTaylorImportance", {}),
    "bn-scale": ("BNScaleImportance", {}),
    "fpgm": ("FPGMImportance", {}),
    "hessian": ("GroupHessianImportance", {}),
}
TP_METHODS: Final = [
    *(f"{TP}{criterion} global" for criterion in TP_CRITERIA),
    *(f"{TP}{criterion} local" for criterion in ("l1", "l2", "fpgm")),
]
BATCH: Final = 64


@dataclass(frozen=True)
class Recipe:
    """SGD with a cosine to zero, random flips and shifts by up to 4 pixels."""

    images: int
    epochs: int
    lr: float
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4


TUNE: Final = Recipe(10_000, 1, 0.01)
"""The short fine-tune, all methods alike."""
ADAPT: Final = Recipe(50_000, 3, 0.02)
"""What turns a published network into an adapted one, where the data folder has none."""
TP_STEPS: Final = 12
"""Bisections of torch-pruning's ratio, until its MACs are those asked for."""


@dataclass(frozen=True)
class Job:
    """What is to be measured."""

    method: str
    macs: float
    seed: int

    @staticmethod
    def parse(text: str) -> Job:
        """Read ``METHOD@MACS@SEED``."""
        method, macs, seed = text.split("@")
        return Job(method, float(macs), int(seed))

    def __str__(self) -> str:
        """Return the form that :meth:`parse` reads."""
        return f"{self.method}@{self.macs:g}@{self.seed}"


class Bench:
    """One network with the images to prune, tune and measure it on."""

    def __init__(self, name: str, weights: Path, images: Path, count: int, device: str) -> None:
        """Build the model and read the test images; all is pruned on the CPU, measured and tuned on the device."""
        import torch

        from secateur.compiler.capture import trace

        self.name, self.images, self.count, self.device = name, images, count, device
        self.measured: dict[str, float] = {}
        announce("reading images")
        self.test = self._open("test", None, 0, device)
        self.model = cifar_resnet(weights)
        self.program = trace(self.model, torch.zeros(CIFAR_INPUT))
        self.dense = self.accuracy(self.placed(self.model))

    @cached_property
    def tuning(self) -> Batches:
        """The images of the short fine-tune."""
        return self._open("train", TUNE.images, 1234, self.device)

    def _open(self, split: str, limit: int | None, seed: int, device: str = "cpu") -> Batches:
        from secateur.compiler.data.images import open_images
        from secateur.compiler.data.preprocess import Preprocess

        how = Preprocess(mean=MEAN, std=STD)
        folder = str(self.images / split)
        found = open_images(folder, preprocess=how, labelled=True, limit=limit, seed=seed, batch_size=BATCH)
        return [(images.to(device), labels.to(device)) for images, labels in found if labels is not None]

    def placed(self, module: nn.Module) -> nn.Module:
        """Return a copy where it is measured and tuned."""
        import torch

        return cast("Any", copy.deepcopy(module)).to(self.device, memory_format=torch.channels_last)

    def accuracy(self, module: nn.Module) -> float:
        """Return top-1 in percent of a network that is placed."""
        import torch

        module.eval()
        with torch.inference_mode():
            right = sum(int((module(images).argmax(1) == labels).sum()) for images, labels in self.test)
        return 100.0 * right / sum(len(labels) for _, labels in self.test)

    def accuracy_once(self, module: nn.Module, key: str) -> float:
        """Return top-1 in percent, once for networks that are the same: without images, those of all seeds are."""
        if key not in self.measured:
            self.measured[key] = self.accuracy(module)
        return self.measured[key]

    def run(self, job: Job, *, tune: bool) -> Json:
        """Prune, measure, fine-tune, measure."""
        announce(f"{job}: pruning")
        begin = time.process_time()  # of one thread, so that it does not matter what else the machine does
        data = self._open("train", self.count, job.seed)
        prune = self._by_torch_pruning if job.method.startswith(TP) else self._by_secateur
        pruned, macs = prune(job, data)
        seconds = time.process_time() - begin
        announce(f"{job}: measuring")
        module = self.placed(pruned)
        record: Json = {
            "model": self.name,
            "method": job.method,
            "macs": job.macs,
            "seed": job.seed,
            "kept": macs,
            "images": self.count,
            "test_images": sum(len(labels) for _, labels in self.test),
            "dense": self.dense,
            "top1": self.accuracy_once(module, fingerprint(pruned)),
            "seconds": round(seconds, 1),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        if tune:
            announce(f"{job}: fine-tuning")
            tuning, begin = self.tuning, time.process_time()
            train(module, tuning, job.seed, TUNE)
            record |= {"tuned": self.accuracy(module), "tune_seconds": round(time.process_time() - begin, 1)}
            record["recipe"] = asdict(TUNE)
        return record

    def adapt(self, file: Path) -> None:
        """Train on the training images and write the weights, whole or not at all."""
        import torch

        module = self.placed(self.model)
        train(module, self._open("train", ADAPT.images, 0, self.device), 0, ADAPT)
        announce(f"adapted: {self.dense:.2f} became {self.accuracy(module):.2f} %")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        torch.save(module.cpu().state_dict(), partial)
        partial.replace(file)

    def _by_secateur(self, job: Job, data: Batches) -> tuple[nn.Module, float]:
        from secateur.backends.compile import compile as compile_model

        text = PIPELINES[job.method].replace("MACS", f"{job.macs:g}")
        given = None if job.method == FREE else data  # absorb would use them
        made = compile_model(self.program, pipeline=text, data=given, seed=job.seed)
        return made.module, made.report["kept"]["macs"]

    def _by_torch_pruning(self, job: Job, data: Batches) -> tuple[nn.Module, float]:
        """Search the ratio at which torch-pruning keeps these MACs; the trunk is left alone, which it breaks."""
        _, criterion, scope = job.method.rsplit(" ", 2)
        gradients = gradients_of(self.model, criterion, data)
        low, high = 0.0, 0.95
        best: tuple[nn.Module, float] | None = None
        for _ in range(TP_STEPS):
            ratio = (low + high) / 2
            module = torch_pruned(copy.deepcopy(self.model), criterion, scope, ratio, gradients)
            kept = macs_of(module) / macs_of(self.model)
            if best is None or abs(kept - job.macs) < abs(best[1] - job.macs):
                best = module, kept
            low, high = (ratio, high) if kept > job.macs else (low, ratio)
        assert best is not None
        return best


def fingerprint(module: nn.Module) -> str:
    """Return a digest of the weights, bit for bit, and of their names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def gradients_of(model: Any, criterion: str, data: Batches) -> list[list[torch.Tensor]]:
    """Return the gradients that torch-pruning's criterion wants: none, those of the loss, or those for each image."""
    import torch
    from torch.nn import functional as F

    model.eval()
    parameters = list(model.parameters())
    if criterion == "taylor":
        model.zero_grad()
        for images, labels in data:
            F.cross_entropy(model(images), labels).backward()
        found = [[p.grad.clone() for p in parameters]]
        model.zero_grad()
        return found
    if criterion == "hessian":  # as its documentation says: one gradient per image
        losses = F.cross_entropy(model(data[0][0]), data[0][1], reduction="none")
        return [list(torch.autograd.grad(loss, parameters, retain_graph=True)) for loss in losses]
    return []


def torch_pruned(
    model: Any, criterion: str, scope: str, ratio: float, gradients: Sequence[Sequence[torch.Tensor]]
) -> nn.Module:
    """Prune by torch-pruning; its criteria that want gradients get those of the loss on the same images."""
    tp: Any = importlib.import_module("torch_pruning")
    name, options = TP_CRITERIA[criterion]
    trunk = [model.conv1, model.linear, *(m.conv2 for m in model.modules() if hasattr(m, "conv2"))]
    model.eval()
    importance = getattr(tp.importance, name)(**options)
    pruner = tp.pruner.BasePruner(
        model,
        model.conv1.weight.new_zeros(CIFAR_INPUT),
        importance=importance,
        pruning_ratio=ratio,
        global_pruning=scope == "global",
        ignored_layers=trunk,
    )
    for of_one in gradients:
        for parameter, gradient in zip(model.parameters(), of_one, strict=True):
            parameter.grad = gradient.clone()
        if criterion == "hessian":
            importance.accumulate_grad(model)
    pruner.step()
    model.zero_grad()
    return model.eval()


def macs_of(module: nn.Module) -> int:
    """Count a module's multiply-accumulates by secateur's rules, whoever pruned it."""
    import torch

    from secateur.compiler.capture import trace
    from secateur.compiler.cost import measure

    return measure(trace(module, torch.zeros(CIFAR_INPUT))).macs


def train(module: nn.Module, data: Batches, seed: int, recipe: Recipe) -> None:
    """Train for a short while, in place, where the data are."""
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(seed)
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    trained = [p for p in module.parameters() if p.is_floating_point()]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(
        trained, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    steps = recipe.epochs * (len(images) // recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    module.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order.to(images.device).split(recipe.batch):
            if len(chosen) < recipe.batch:
                continue
            batch = images[chosen]
            flip = (torch.rand(len(batch), 1, 1, 1, generator=generator) < 0.5).to(images.device)
            batch = torch.where(flip, batch.flip(3), batch)
            dy, dx = torch.randint(0, 9, (2,), generator=generator).tolist()
            batch = F.pad(batch, (4, 4, 4, 4))[:, :, dy : dy + 32, dx : dx + 32]
            loss = F.cross_entropy(module(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    module.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune one CIFAR ResNet in several ways and measure top-1.")
    parser.add_argument("model")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--adapt", type=Path, metavar="FILE", help="train on the images, and write the weights there")
    parser.add_argument("--job", action="append", default=[], metavar="METHOD@MACS@SEED")
    parser.add_argument("--count", type=int, default=1024, help="training images to prune with")
    parser.add_argument("--tune", action="store_true", help="fine-tune, too")
    parser.add_argument("--device", default="cpu", help="where networks are measured and tuned")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # float32 everywhere, so that devices compare
    bench = Bench(options.model, options.weights, options.images, options.count, options.device)
    if options.adapt is not None:
        bench.adapt(options.adapt)
    for text in options.job:
        job = Job.parse(text)
        try:
            record = bench.run(job, tune=options.tune)
        except Exception as error:
            failed = portable(f"{type(error).__name__}: {error}").partition("\n")[0][:300]
            record = {"model": options.model, "method": job.method, "macs": job.macs, "seed": job.seed}
            record["failed"] = failed
        print(json.dumps({"record": record}), flush=True)


if __name__ == "__main__":
    main()
