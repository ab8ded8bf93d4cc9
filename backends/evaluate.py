"""Accuracy on labelled images: top-1 and top-5 of anything that maps a batch of images to logits.

An image counts for top-k when fewer than k classes are ranked before its label: those with a larger logit, and, so that
ties do not depend on an engine's sorting, those with an equal logit and a smaller index. Top-1 is therefore argmax.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor

from ..compiler.data.images import ImageSet
from ..compiler.errors import CompilerError, SourceError

_FIVE: Final = 5
_PERIOD: Final = 0.5
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Accuracy:
    """What was measured.

    Attributes:
        top1: In percent.
        top5: In percent; ``None`` where there are no more than five classes.
        images: How many were evaluated.
        note: What a reader of the figures has to know, else ``None``.
    """

    top1: float
    top5: float | None
    images: int
    note: str | None = None

    def __str__(self) -> str:
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.2f} %"
        return f"top-1 {self.top1:.2f} %{top5} on {self.images:,} images"


def evaluate(
    run: Callable[[Tensor], object], images: ImageSet, *, progress: Callable[[str], None] = lambda text: None
) -> Accuracy:
    """Measure accuracy.

    Args:
        run: From images float32 (B, C, H, W) on the CPU to logits (B, classes) on any device, in any floating dtype. Of
            a mapping ``"out"`` is taken, or else its first tensor; of a tuple its first tensor. A module belongs in
            eval mode; gradients are off.
        images: Labelled images.
        progress: Told, at most twice a second, how far it is and the accuracy so far.

    Raises:
        SourceError: The images have no labels, or more classes than the model has outputs.
        CompilerError: The output is not (B, classes), or is not finite.
    """
    if images.classes is None:
        raise SourceError("accuracy cannot be measured without labels", where=images.name, hint="open it with labels")
    first = best = seen = outputs = 0
    told = time.monotonic()
    for batch, labels in images:
        assert labels is not None
        with torch.inference_mode():
            logits = logits_of(run(batch), len(batch))
            outputs = logits.shape[1]
            check_classes(images.name, images.classes, outputs)
            ranks = ranks_of(logits, labels)
        first += int((ranks == 0).sum())
        best += int((ranks < _FIVE).sum())
        seen += len(batch)
        if time.monotonic() - told >= _PERIOD:
            told = time.monotonic()
            progress(f"{seen:,} of {len(images):,} images, top-1 {100 * first / seen:.1f} %")
    if not seen:
        raise SourceError("accuracy cannot be measured without images", where=images.name)
    return Accuracy(
        top1=100 * first / seen,
        top5=100 * best / seen if outputs > _FIVE else None,
        images=seen,
        note=_note(len(images.classes), outputs),
    )


def ranks_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return int64 (B,): how many classes come before the label."""
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def logits_of(output: object, batch: int) -> Tensor:
    """Return the logits (B, classes) in an output, on the CPU.

    Raises:
        CompilerError: There are none, or they are not finite.
    """
    found = _tensor(output)
    if found is None or found.ndim != 2 or len(found) != batch or not found.shape[1]:
        raise CompilerError(
            f"a classifier's output is one row of logits per image, {batch} x classes, and this is {_describe(output)}",
            hint="accuracy can be measured for classifiers only",
        )
    logits = found.detach().cpu()
    # A masked class may well be at minus infinity.
    bad = logits.isnan() | (logits == torch.inf)
    if bad.any():
        raise CompilerError(
            f"the model's output is not finite for {int(bad.any(1).sum()):,} of {batch:,} images",
            hint="look at its weights; in half precision large activations overflow",
        )
    return logits


def _tensor(output: object) -> Tensor | None:
    if isinstance(output, Mapping):
        named = cast("Mapping[str, Any]", output)
        values: Iterable[object] = [named["out"]] if "out" in named else named.values()
    elif isinstance(output, tuple | list):
        values = cast("tuple[object, ...]", output)
    else:
        values = [output]
    return next((value for value in values if isinstance(value, Tensor)), None)


def _describe(output: object) -> str:
    """Say what an output is: ``a mapping of 'out': a tensor of 8 x 21 x 64 x 64``."""
    if isinstance(output, Tensor):
        return f"a tensor of {' x '.join(map(str, output.shape)) or 'no dimensions'}"
    if isinstance(output, Mapping):
        named = cast("Mapping[str, Any]", output)
        parts = [f"'{name}': {_describe(value)}" for name, value in named.items()]
        return f"a mapping of {', '.join(parts) or 'nothing'}"
    if isinstance(output, tuple | list):
        values = cast("tuple[object, ...]", output)
        return f"a {type(values).__name__} of {', '.join(map(_describe, values)) or 'nothing'}"
    return f"of type {type(output).__name__}"


def check_classes(data: str, classes: tuple[str, ...], outputs: int, *, hint: str = "") -> None:
    """Refuse data with more classes than a model has outputs.

    Args:
        data: Its name.
        classes: Theirs.
        outputs: How many the model has.
        hint: What else may be done about it.

    Raises:
        SourceError: It has.
    """
    if len(classes) > outputs:
        raise SourceError(
            f"the data has {len(classes):,} classes and the model {outputs:,} outputs",
            where=data,
            hint=f"{hint}leave out the classes that the model does not know; the data's are {_listed(classes)}",
        )


def _note(classes: int, outputs: int) -> str | None:
    """Warn of a part of the classes: class folders are numbered as they sort, and outputs keep their own numbers."""
    if classes == outputs:
        return None
    return (
        f"the model has {outputs:,} outputs and the data {classes:,} classes, which were taken to be the first "
        f"{classes:,} outputs, in the order of their names"
    )


def _listed(names: tuple[str, ...], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
