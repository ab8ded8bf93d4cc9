"""The training loop: plain, with callbacks, on Lightning Fabric for devices, precision and processes.

A run is a function of its arguments: batches, their augmentation and what layers draw depend on the seed, the epoch and
the step only. So a run that was interrupted continues from the last finished epoch to the same result, and needs no
state of any generator. The caller's generators are left as they were.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from ...compiler.errors import CompilerError, MissingExtraError, OptionError
from ...compiler.program import Program
from ..evaluate import check_classes, ranks_of
from . import cuda_graph
from .callback import Callback, Run
from .checkpoint import Checkpoints, pack, unpack
from .data import Data
from .ema import Average
from .objective import Objective, all_logits
from .recipe import Recipe
from .schedule import learning_rate
from .splits import Share, Split

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_FIVE: Final = 5
_PERIOD: Final = 0.2
"""Seconds between two looks at the loss: each waits for the device."""

Progress = Callable[[str], None]


def _silent(text: str) -> None:
    del text


@dataclass
class History:
    """What a run gave."""

    epochs: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """Per epoch: loss, top1, top5, lr, seconds, and what callbacks added."""
    best: int | None = None
    """Number of the epoch (from 1) with the best top-1."""
    dense: dict[str, float] = field(default_factory=dict[str, float])
    """Top-1 and top-5 before the first epoch."""
    outputs: int = 0
    """How many the network has."""

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        return {"epochs": self.epochs, "best": self.best, "before": self.dense}


def make_fabric(recipe: Recipe, *, accelerator: str = "auto", devices: int = 1) -> Fabric:
    """Return what runs the loop: under ``torchrun`` (or Fabric's own launcher) on all processes, else on this one.

    Raises:
        MissingExtraError: Lightning Fabric is not installed.
        OptionError: There is no such accelerator here.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingExtraError(
            "Lightning Fabric, which runs the training loop, is not installed", hint="pip install 'secateur[train]'"
        ) from error
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=local,
            num_nodes=max(1, world // local),
            precision=cast("Any", recipe.precision),
            strategy="ddp" if max(world, local) > 1 else "auto",
        )
    except (RuntimeError, ValueError) as error:
        raise OptionError(f"cannot train on '{accelerator}' here: {str(error).splitlines()[0]}") from error
    fabric.launch()
    return fabric


def leave() -> None:
    """Let the processes of a distributed run end together: one that is gone takes the others' connections with it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    callbacks: Sequence[Callback] = (),
    program: Program | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    fabric: Fabric | None = None,
    checkpoints: Checkpoints | None = None,
    record: Mapping[str, Any] | None = None,
    progress: Progress = _silent,
    log: Callable[[dict[str, float]], None] | None = None,
) -> History:
    """Train a model in place.

    Args:
        model: From images [B, C, H, W] to logits [B, classes].
        data: Images to train and to test on.
        recipe: Numbers.
        callbacks: Methods, called in this order.
        program: The model's graph, for callbacks that want to analyse it.
        teacher: Whose answers are learnt with ``recipe.distill``.
        seed: Of batches, augmentation and what layers draw.
        fabric: Where it runs; one process on the best device by default.
        checkpoints: Where an interrupted run finds itself again; what is there is continued.
        record: What else decides the result; a checkpoint with another one is refused.
        progress: Told how far it is.
        log: Told the figures of every epoch, also of those before an interruption.

    Returns:
        The figures of all epochs. The model ends with the weights that ``recipe.keep`` says, in evaluation mode.

    Raises:
        CompilerError: The loss is not a number any more, or the data do not fit the model.
    """
    generators = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=generators):
        loop = _Loop(model, data, recipe, callbacks, program, teacher, seed, fabric, checkpoints, record, progress, log)
        return loop.run_all()


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        data: Data,
        recipe: Recipe,
        callbacks: Sequence[Callback],
        program: Program | None,
        teacher: nn.Module | None,
        seed: int,
        fabric: Fabric | None,
        checkpoints: Checkpoints | None,
        record: Mapping[str, Any] | None,
        progress: Progress,
        log: Callable[[dict[str, float]], None] | None,
    ) -> None:
        self.recipe, self.seed = recipe, seed
        self.fabric = fabric or make_fabric(recipe)
        self.data = data.placed(self.fabric.device)
        self.share = Share(self.fabric.global_rank, self.fabric.world_size)
        self.progress, self.log = progress, log
        self.average = Average(recipe.ema, callbacks) if recipe.ema is not None else None
        self.callbacks = [*callbacks, *([self.average] if self.average is not None else [])]
        self.checkpoints = checkpoints
        self.record = {**(record or {}), "recipe": recipe.to_json(), "seed": seed, "data": data.spec}
        self.history = History()
        self.best: dict[str, Tensor] = {}
        if recipe.channels_last:
            cast("Any", model).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, recipe)
        wrapped, self.optimizer = self.fabric.setup(model, optimizer)
        self.forward: Any = wrapped
        self.objective = Objective(recipe, self._placed(teacher))
        if recipe.cuda_graph:
            cuda_graph.check(self.fabric.device, self.share.world)
        self.release: Callable[[], None] | None = None
        steps = data.train.steps(recipe.batch_size)
        self.run = Run(model, program, optimizer, recipe.epochs, steps)

    def _placed(self, teacher: nn.Module | None) -> nn.Module | None:
        if teacher is None:
            return None
        return teacher.eval().to(self.fabric.device)

    def run_all(self) -> History:
        self._resume()
        if not self.run.epoch:
            self.history.dense = self._first_look()
        for callback in self.callbacks:
            callback.begin(self.run)
        try:
            for _ in range(self.run.epoch, self.recipe.epochs):
                self._epoch()
        finally:
            if self.release is not None:
                self.release()
        for callback in self.callbacks:
            callback.finish(self.run)
        if self.recipe.keep == "best" and self.best:
            self.run.module.load_state_dict(self.best)
        self.run.module.eval()
        return self.history

    def _resume(self) -> None:
        saved = self.checkpoints.latest() if self.checkpoints is not None else None
        if saved is None:
            return
        for key, value in self.record.items():
            if saved.record["asked"].get(key) != value:
                raise OptionError(
                    f"the interrupted run was asked for another {key}: {saved.record['asked'].get(key)}",
                    where=str(self.checkpoints.folder if self.checkpoints else ""),
                    hint="give the same options, or --force to begin anew",
                )
        unpack(saved.state, self.run.module, self.run.optimizer, self.callbacks)
        self.fabric.strategy.precision.load_state_dict(saved.record["scaling"])
        self.best = saved.best
        self.run.epoch, self.run.step = saved.record["epoch"], saved.record["step"]
        self.history = History(saved.record["history"], saved.record["best"], saved.record["before"])
        for figures in self.history.epochs:
            self._tell(figures)

    def _epoch(self) -> None:
        begin = time.perf_counter()
        run, recipe = self.run, self.recipe
        # Each process and epoch draws its own numbers, whatever came before.
        torch.manual_seed((self.seed * 1_000_003 + run.epoch) * 1009 + self.share.rank)
        run.module.train()
        for callback in self.callbacks:
            callback.before_epoch(run)
        total, seen, waited = torch.zeros((), device=self.fabric.device), 0, 0.0
        looked = begin
        batches = self.data.train.training(
            run.epoch, recipe.batch_size, self.share, seed=self.seed, augment=recipe.augment
        )
        for number in range(run.steps_per_epoch):
            asked = time.perf_counter()
            images, labels = next(batches)
            waited += time.perf_counter() - asked
            total += self._step(images, labels)
            seen += 1
            if time.perf_counter() - looked > _PERIOD or number + 1 == run.steps_per_epoch:
                looked = time.perf_counter()
                self._look(float(total) / seen, number + 1)
        run.figures = {"loss": float(self._mean(total / seen)), "lr": self.rate}
        for callback in self.callbacks:
            callback.after_epoch(run)
        averaged = self.average.swapped(run) if self.average is not None else nullcontext()
        with averaged:
            run.figures |= self._evaluate()
            self._keep_best()
        run.epoch += 1
        seconds = time.perf_counter() - begin
        figures = {"epoch": run.epoch, **run.figures, "seconds": round(seconds, 2), "waited": round(waited, 2)}
        self.history.epochs.append(figures)
        self._tell(figures)
        self._save()

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        run, recipe = self.run, self.recipe
        self.rate = learning_rate(recipe, run.step, run.steps_per_epoch)
        for group in run.optimizer.param_groups:
            group["lr"] = self.rate
        images, labels = self._moved(images), labels.to(self.fabric.device)
        if recipe.cuda_graph and self.release is None:
            self.release = cuda_graph.capture(run.module, images, recipe.precision)
        loss = self.objective(self.forward(images), images, labels)
        run.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.fabric.strategy.precision.unscale_gradients(run.optimizer)  # callbacks see gradients as they are
        if recipe.clip is not None:
            # In float16 some are infinite now and then, and the optimizer skips such a step.
            nn.utils.clip_grad_norm_(run.module.parameters(), recipe.clip)
        for callback in self.callbacks:
            callback.before_step(run)
        self.optimizer.step()
        run.step += 1
        for callback in self.callbacks:
            callback.after_step(run)
        return loss.detach()

    def _moved(self, images: Tensor) -> Tensor:
        form = torch.channels_last if self.recipe.channels_last and images.ndim == 4 else torch.preserve_format
        return images.to(self.fabric.device, memory_format=form)

    def _look(self, loss: float, number: int) -> None:
        if not math.isfinite(loss):
            raise CompilerError(
                f"the loss is {loss} in epoch {self.run.epoch + 1}, step {number}, at a learning rate of {self.rate:g}",
                hint="a smaller --lr, a --warmup, or --clip 1",
            )
        share = f"{number} of {self.run.steps_per_epoch} steps"
        self.progress(f"epoch {self.run.epoch + 1} of {self.recipe.epochs}: {share}, loss {loss:.3f}")

    def _first_look(self) -> dict[str, float]:
        """Evaluate before the first step, where images that the network does not take show themselves."""
        try:
            return self._evaluate()
        except RuntimeError as error:
            raise CompilerError(
                f"the network does not take these images: {str(error).splitlines()[0]}",
                where=self.data.test.name,
                hint="look at --preprocess, and at what the network's first layer takes",
            ) from error

    def _evaluate(self) -> dict[str, float]:
        """Return top-1 and top-5 in percent, over all processes."""
        module, split = self.run.module, self.data.test
        module.eval()
        counts = torch.zeros(3, dtype=torch.float64, device=self.fabric.device)
        outputs = 0
        if self.share.world > 1:  # each process has gathered statistics of its own
            for buffer in module.buffers():
                buffer.copy_(self.fabric.broadcast(buffer))
        with torch.no_grad(), self.fabric.autocast():
            for images, labels in split.testing(self.recipe.batch_size, self.share):
                logits = all_logits(module(self._moved(images)))[0].float().cpu()
                outputs = self.history.outputs = self._checked(logits, split)
                ranks = ranks_of(logits, labels.cpu())
                found = [(ranks == 0).sum(), (ranks < _FIVE).sum(), torch.tensor(len(ranks))]
                counts += torch.stack(found).to(counts)
        first, best, seen = cast("Tensor", self.fabric.all_reduce(counts, reduce_op="sum")).tolist()
        figures = {"top1": 100.0 * first / seen}
        return figures | ({"top5": 100.0 * best / seen} if outputs > _FIVE else {})

    @staticmethod
    def _checked(logits: Tensor, split: Split) -> int:
        if logits.ndim != 2:
            raise CompilerError(
                f"a classifier gives a row of logits per image, and this model {tuple(logits.shape)}",
                hint="only classifiers can be trained from the command line",
            )
        hint = "`secateur train --new-head` gives it as many, or "
        check_classes(split.name, split.classes, logits.shape[1], hint=hint)
        return logits.shape[1]

    def _keep_best(self) -> None:
        """Remember the weights if they are the best so far; the first of several that are as good."""
        before = self.history.epochs[self.history.best - 1]["top1"] if self.history.best is not None else -1.0
        if self.run.figures["top1"] > before:
            self.history.best = self.run.epoch + 1
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.run.module.state_dict().items()}

    def _mean(self, value: Tensor) -> Tensor:
        return cast("Tensor", self.fabric.all_reduce(value, reduce_op="mean"))

    def _tell(self, figures: dict[str, float]) -> None:
        if self.log is not None and self.fabric.is_global_zero:
            self.log(figures)

    def _save(self) -> None:
        if self.checkpoints is None:
            return
        last = self.run.epoch == self.recipe.epochs
        if self.fabric.is_global_zero and (last or self.checkpoints.due()):
            done = {"epoch": self.run.epoch, "step": self.run.step, "asked": self.record}
            done["scaling"] = self.fabric.strategy.precision.state_dict()  # of the loss, in float16
            done |= {"history": self.history.epochs, "best": self.history.best, "before": self.history.dense}
            self.checkpoints.save(pack(self.run.module, self.run.optimizer, self.callbacks), self.best, done)
        self.fabric.barrier()


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe; its rate is set before every step."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if recipe.decay_norms or parameter.ndim > 1 else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))
