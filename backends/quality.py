"""How good a program's answers are on a set of images, with labels or without: accuracy and loss in one number each.

    labelled     top1 = share of images whose label comes first     loss = mean of -log q(label)
    unlabelled   top1 = share of images with the dense top-1        loss = mean of sum_k p_k (log p_k - log q_k)

q are the softmax outputs of the program that is judged, p those of the dense one. The loss is finer than top-1: it
moves long before the first answer changes. Logarithms end at -100, as in torch's binary cross-entropy, so that a class
of probability 0 leaves it finite.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ..compiler.data.images import Batch, ImageSet, Split, default_preprocess, open_images
from ..compiler.data.preprocess import Preprocess
from ..compiler.errors import SourceError
from ..compiler.program import Program
from .engines.torch_eager import TorchEager
from .evaluate import check_classes, logits_of, ranks_of
from .inputs import ModelInput

_SMALLEST: Final = -100.0
_PERIOD: Final = 0.5
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Quality:
    """What was measured."""

    top1: float
    """In percent: accuracy, or agreement with the dense model."""
    loss: float
    """In nats, mean over the images: cross-entropy, or KL divergence from the dense model."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images to judge on."""

    images: ImageSet
    preprocess: str
    unlabelled: str
    """Why there are no labels; empty where there are."""


def open_judged(
    model: ModelInput,
    data: str,
    *,
    preprocess: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    labels: bool = True,
    split: Split = "test",
) -> Images:
    """Open images, with labels where there are some.

    Args:
        model: What they are prepared for.
        data: A folder with a folder per class, a plain folder, or an embedded example.
        preprocess: As text; by default what the model's weights ask for.
        limit: So many at most, classes in balance.
        seed: Of the choice.
        labels: Whether labels are wanted.
        split: Which of an example's images.

    Raises:
        SourceError: There are no images, or they cannot be read.
        OptionError: The preprocessing cannot be read, or does not fit.
    """
    if preprocess is None:
        how = default_preprocess(data, spec=model.spec, input_shape=model.shapes[0])
    else:
        how = Preprocess.parse(preprocess)

    def opened(labelled: bool) -> ImageSet:
        return open_images(data, preprocess=how, labelled=labelled, limit=limit, seed=seed, split=split)

    plain = opened(False)  # complains about everything but labels
    if not labels:
        return Images(plain, str(how), "labels are not wanted")
    try:
        return Images(opened(True), str(how), "")
    except SourceError as error:
        return Images(plain, str(how), error.what)


class Judge:
    """Measures programs on one set of images; see the module.

    Args:
        dense: The program that others are compared with.
        images: With labels or without.
        keep: Hold the prepared images in memory (4 bytes per value), for sets that are gone through many times.
        threads: Of torch, while it computes.
        progress: Told, at most twice a second, how far a measurement is.

    Raises:
        SourceError: There are no images, or more classes than outputs.
        CompilerError: The output is not (B, classes), or is not finite.
    """

    def __init__(
        self,
        dense: Program,
        images: ImageSet,
        *,
        keep: bool = False,
        threads: int = 2,
        progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        if not len(images):
            raise SourceError("nothing can be measured without images", where=images.name)
        self.images = images
        self.labelled = images.classes is not None
        self.batches: Iterable[Batch] = tuple(images) if keep else images
        self._threads = threads
        self._dense: list[Tensor] = []
        self._labels: list[Tensor | None] = []
        self._progress = progress
        for (_, labels), logits in self._run(dense, "measuring the dense model"):
            if images.classes is not None:
                check_classes(images.name, images.classes, logits.shape[1])
            self._dense.append(logits)
            self._labels.append(labels)
        self.dense = self._measured(self._dense)

    def __call__(self, program: Program, what: str = "measuring") -> Quality:
        """Measure a program.

        Args:
            program: Of the same inputs and outputs as the dense one.
            what: How progress begins.

        Raises:
            CompilerError: The output is not (B, classes), or is not finite.
        """
        return self._measured(logits for _, logits in self._run(program, what))

    def _run(self, program: Program, what: str) -> Iterator[tuple[Batch, Tensor]]:
        """Yield batches with the logits that a program gives for them."""
        run = TorchEager().build(program, threads=self._threads)
        seen, told = 0, time.monotonic()
        for batch in self.batches:
            yield batch, logits_of(run(batch[0]), len(batch[0]))
            seen += len(batch[0])
            if time.monotonic() - told >= _PERIOD:
                told = time.monotonic()
                self._progress(f"{what}, {seen:,} of {len(self.images):,} images")

    def _measured(self, outputs: Iterable[Tensor]) -> Quality:
        right, loss = 0, 0.0
        for logits, dense, labels in zip(outputs, self._dense, self._labels, strict=True):
            answers = dense.argmax(1) if labels is None else labels
            log_q = _log_softmax(logits)
            right += int((ranks_of(logits, answers) == 0).sum())
            if labels is None:
                log_p = _log_softmax(dense)
                # Never negative but for rounding, where outputs hardly differ.
                loss += float((log_p.exp() * (log_p - log_q)).sum(1).clamp(min=0.0).sum())
            else:
                loss -= float(log_q.gather(1, labels[:, None]).sum())
        return Quality(100 * right / len(self.images), loss / len(self.images))

    @property
    def entropy(self) -> float:
        """Mean entropy of the dense model's answers in nats: differs where images do, with labels or without."""
        found = 0.0
        for logits in self._dense:
            log_p = _log_softmax(logits)
            found -= float((log_p.exp() * log_p).sum())
        return found / len(self.images)

    def checksum(self) -> str:
        """Return the SHA-256 of the prepared images and their labels."""
        return checksum(
            (name, tensor)
            for batch, labels in self.batches
            for name, tensor in (("images", batch), ("labels", labels))
            if tensor is not None
        )


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of tensors with their names, dtypes and shapes."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), 1).clamp(min=_SMALLEST)
