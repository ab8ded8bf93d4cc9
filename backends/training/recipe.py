"""How a network is trained, in numbers: what decides the result, but for data, network and methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, get_args

from ...compiler.errors import OptionError

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "step", "multistep", "exp", "cosine", "onecycle"]
Augment = Literal["auto", "none", "shift-flip", "resized-crop"]
PRECISIONS: Final = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class Recipe:
    """Numbers of a training run. Options of the command line have the same names, with hyphens."""

    epochs: int = 20
    batch_size: int = 128
    """Images per step, over all processes."""
    optimizer: Optimizer = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_norms: bool = True
    """Whether weight decay is for scales, shifts and biases too."""
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Where ``multistep`` lowers the rate: fractions of all epochs (below 1), or epochs."""
    step_size: float = 30.0
    """Epochs between two steps of ``step``."""
    gamma: float = 0.1
    """By what ``step``, ``multistep`` and, each epoch, ``exp`` multiply the rate."""
    warmup: float = 0.0
    """Epochs in which the rate rises from 0 in a straight line."""
    label_smoothing: float = 0.0
    clip: float | None = None
    """Largest norm of all gradients together."""
    ema: float | None = None
    """Decay per step of the averaged weights, which are then what is evaluated and kept."""
    precision: str = "32-true"
    channels_last: bool = False
    cuda_graph: bool = False
    """Whether forward and backward pass are replayed as CUDA graphs: for small networks, which wait for the CPU."""
    augment: Augment = "auto"
    """``auto``: what suits the images (``shift-flip`` for small ones, ``resized-crop`` for large ones)."""
    distill: float = 0.0
    """Share of the teacher in the loss."""
    temperature: float = 4.0
    """Of distillation."""
    keep: Literal["last", "best"] = "last"
    """Which weights the run gives: those of the last epoch, or of the one with the best top-1."""

    def __post_init__(self) -> None:
        for message in self._complaints():
            raise OptionError(message, hint="secateur train --help")

    def _complaints(self) -> Iterator[str]:
        for name, choices in (("optimizer", Optimizer), ("schedule", Schedule), ("augment", Augment)):
            if getattr(self, name) not in get_args(choices):
                yield f"{name} cannot be '{getattr(self, name)}': one of {', '.join(get_args(choices))}"
        if self.precision not in PRECISIONS:
            yield f"precision cannot be '{self.precision}': one of {', '.join(PRECISIONS)}"
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                yield f"{name.replace('_', '-')} is {getattr(self, name)}: 1 or more is needed"
        for name in ("lr", "gamma", "step_size", "temperature"):
            if not getattr(self, name) > 0:
                yield f"{name.replace('_', '-')} is {getattr(self, name):g}: more than 0 is needed"
        for name in ("momentum", "weight_decay", "warmup"):
            if not getattr(self, name) >= 0:
                yield f"{name.replace('_', '-')} is {getattr(self, name):g}: 0 or more is needed"
        if not 0 <= self.label_smoothing < 1 or not 0 <= self.distill <= 1:
            yield "label-smoothing and distill are shares: 0 <= share < 1"
        if self.warmup >= self.epochs:
            yield f"warmup takes {self.warmup:g} of {self.epochs} epochs: fewer are needed"
        if self.clip is not None and not self.clip > 0:
            yield f"clip is {self.clip:g}: more than 0 is needed"
        if self.ema is not None and not 0 < self.ema < 1:
            yield f"ema is {self.ema:g}: a decay between 0 and 1 is needed, such as 0.999"
        if list(self.milestones) != sorted(self.milestones) or any(m <= 0 for m in self.milestones):
            yield "milestones are fractions of all epochs, or epochs, in rising order: 0.5:0.75"

    def to_json(self) -> dict[str, Any]:
        """Return all fields."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Recipe:
        """Read what :meth:`to_json` returned; fields that are missing have their defaults."""
        known = {f.name for f in fields(cls)}
        given = {name: value for name, value in record.items() if name in known}
        if "milestones" in given:
            given["milestones"] = tuple(given["milestones"])
        return cls(**given)
