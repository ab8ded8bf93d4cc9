"""Images to train and to test on, in batches: small ones held in memory, large ones read on the way.

What a batch holds depends on the seed, the epoch and the step alone: neither on how many processes share it, nor on how
many workers read. Of a batch each process gets every n-th image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...compiler.data.images import decode
from ...compiler.data.preprocess import Preprocess, import_pillow
from .augment import resized_crop, shift_flip
from .recipe import Augment

Batch = tuple[Tensor, Tensor]
"""Images float32 [B, C, H, W], labels int64 [B]."""


@dataclass(frozen=True)
class Share:
    """Which images of every batch are this process's."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True, eq=False)
class Split(ABC):
    """Labelled images."""

    name: str
    classes: tuple[str, ...]
    preprocess: Preprocess

    @property
    @abstractmethod
    def natural(self) -> Augment:
        """What ``auto`` means."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def targets(self) -> Tensor:
        """Return the labels: int64 [N]."""

    @abstractmethod
    def part(self, chosen: Tensor) -> Self:
        """Return some of the images, by their indices."""

    @abstractmethod
    def _batches(self, orders: Sequence[Tensor], share: Share, seed: int, augment: Augment) -> Iterator[Batch]:
        """Yield a batch for each order (indices of images), changed at random as ``augment`` says."""

    def placed(self, device: torch.device) -> Split:
        """Return the same images, held on a device where they are held in memory: batches are then made there."""
        del device
        return self

    def steps(self, batch_size: int) -> int:
        """Return the number of batches in an epoch: whole ones only, unless there is none."""
        return max(1, len(self) // batch_size)

    def training(self, epoch: int, batch_size: int, share: Share, *, seed: int, augment: Augment) -> Iterator[Batch]:
        """Yield the batches of an epoch in an order of its own."""
        own, augment = _mixed(seed, epoch), self.natural if augment == "auto" else augment
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(own))
        whole = order[: self.steps(batch_size) * batch_size].split(batch_size)
        return self._batches(whole, share, own, augment)

    def testing(self, batch_size: int, share: Share) -> Iterator[Batch]:
        """Yield every image once, over all processes."""
        return self._batches(torch.arange(len(self)).split(batch_size * share.world), share, 0, "none")


@dataclass(frozen=True, eq=False)
class InMemory(Split):
    """All images decoded: uint8, or float32 and normalised already."""

    images: Tensor
    labels: Tensor

    @property
    def natural(self) -> Augment:
        """Small moves, where pixels are raw."""
        return "shift-flip" if self.images.dtype == torch.uint8 else "none"

    def __len__(self) -> int:
        return len(self.labels)

    def targets(self) -> Tensor:
        """Return the labels."""
        return self.labels

    def part(self, chosen: Tensor) -> Self:
        """Return some of the images."""
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def placed(self, device: torch.device) -> Split:
        """Move all images at once: they are bytes, and few enough to be held in memory."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def _batches(self, orders: Sequence[Tensor], share: Share, seed: int, augment: Augment) -> Iterator[Batch]:
        for step, drawn in enumerate(orders):
            order = drawn.to(self.images.device)
            mine = order[share.rank :: share.world]
            images = self.images[order if augment != "none" else mine]
            if augment != "none":
                generator = torch.Generator().manual_seed(_mixed(seed, step + 1))
                change = shift_flip if augment == "shift-flip" else resized_crop
                images = change(images, generator)[share.rank :: share.world]
            if len(mine):
                yield self._normalised(images), self.labels[mine]

    def _normalised(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images
        mean, std = _statistics(self.preprocess.mean, self.preprocess.std, images.device)
        return images.float().div_(255).sub_(mean).div_(std)


@cache
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return both as [C, 1, 1], moved there once."""
    first, second = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    return first, second


@dataclass(frozen=True, eq=False)
class OnDisk(Split):
    """Files, decoded by worker processes when they are needed."""

    files: tuple[tuple[int, Path], ...]
    size: tuple[int, int]
    """Height and width that the model takes."""
    workers: int = 2

    @property
    def natural(self) -> Augment:
        """Parts of images, as large ones have detail enough."""
        return "resized-crop"

    def __len__(self) -> int:
        return len(self.files)

    def targets(self) -> Tensor:
        """Return the labels."""
        return torch.tensor([label for label, _ in self.files])

    def part(self, chosen: Tensor) -> Self:
        """Return some of the images."""
        return replace(self, files=tuple(self.files[index] for index in chosen.tolist()))

    def _batches(self, orders: Sequence[Tensor], share: Share, seed: int, augment: Augment) -> Iterator[Batch]:
        mine = [order[share.rank :: share.world].tolist() for order in orders]
        sampler = [batch for batch in mine if batch]
        images = _Files(self, seed, augment)
        yield from DataLoader(images, batch_sampler=sampler, num_workers=self.workers)


class _Files(Dataset[tuple[Tensor, int]]):
    def __init__(self, split: OnDisk, seed: int, augment: Augment) -> None:
        self.split, self.seed, self.augment = split, seed, augment

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label, file = self.split.files[index]
        image = decode(file, import_pillow())
        preprocess = self.split.preprocess
        if self.augment == "none":
            return preprocess.apply(image, where=str(file)), label
        generator = torch.Generator().manual_seed(_mixed(self.seed, index + 1))
        plain = Preprocess(mean=preprocess.mean, std=preprocess.std)
        values = torch.from_numpy(plain.pixels(image, where=str(file)).copy()).permute(2, 0, 1)[None]
        changed = resized_crop(values, generator, size=self.split.size)[0].float().div_(255)
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (preprocess.mean, preprocess.std))
        return changed.sub_(mean).div_(std), label


def _mixed(seed: int, number: int) -> int:
    """Return another seed for every number."""
    return (seed * 6_364_136_223_846_793_005 + number * 1_442_695_040_888_963_407 + 1) % 2**63
