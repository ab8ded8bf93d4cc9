"""From what ``--data`` and ``--val`` name to images to train and to test on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ...compiler import examples
from ...compiler.data.images import decode, default_preprocess, find_files
from ...compiler.data.preprocess import Preprocess, default_for, import_pillow
from ...compiler.errors import SourceError
from ..inputs import ModelInput
from . import cifar
from .splits import InMemory, OnDisk, Split

_TRAIN: Final = ("train", "training")
_TEST: Final = ("test", "val", "valid", "validation", "testing")
_IN_MEMORY: Final = 1 << 30
"""Bytes of decoded images that are held in memory at most."""
_READERS: Final = 8


@dataclass(frozen=True, eq=False)
class Data:
    """Images of both kinds, of the same classes."""

    train: Split
    test: Split
    spec: dict[str, Any]
    """What was opened, for the record."""

    def placed(self, device: torch.device) -> Data:
        """Return the same images, on a device where they are held in memory."""
        return Data(self.train.placed(device), self.test.placed(device), self.spec)


def open_data(
    model: ModelInput,
    data: str,
    *,
    val: str | None = None,
    preprocess: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Open images to train and to test on.

    Args:
        model: Says how images are prepared, and of what size they have to be.
        data: A folder that holds ``train`` and ``test`` (or ``val``), a folder of class folders, CIFAR-10 or CIFAR-100
            as torchvision unpacks it, or the name of an embedded example.
        val: Class folders to test on, where ``data`` has none.
        preprocess: Its text form; by default what belongs to the model.
        limit: Train on so many images at most, classes in balance.
        seed: Determines which.

    Raises:
        SourceError: There are none, they are not labelled, or nothing says what to test on.
        OptionError: The preprocessing cannot be read, or does not fit.
    """
    opened = _opener(model, data, val, preprocess, seed)
    train, test = opened(True, limit), opened(False, None)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise SourceError(
            f"the images to train and to test on have different classes: {', '.join(odd[:5])}",
            where=f"{train.name}, {test.name}",
            hint="give both folders the same class folders",
        )
    spec = {"data": data, "val": val, "preprocess": str(train.preprocess), "limit": limit, "seed": seed}
    return Data(train, test, {**spec, "images": len(train), "test_images": len(test), "classes": len(train.classes)})


def open_training(model: ModelInput, data: str, *, preprocess: str | None = None, seed: int = 0) -> Split:
    """Open all images to train on, and no others; see :func:`open_data`."""
    return _opener(model, data, data, preprocess, seed)(True, None)


def _opener(
    model: ModelInput, data: str, val: str | None, preprocess: str | None, seed: int
) -> Callable[[bool, int | None], Split]:
    """Return what opens so many images, to train on or not."""
    how = Preprocess.parse(preprocess) if preprocess is not None else None
    if data in examples.names():
        return lambda train, limit: _example(data, limit, seed)[0 if train else 1]
    if (folder := cifar.find(data)) is not None:
        chosen = how or default_for(model.spec, model.shapes[0], image_size=(32, 32))
        return lambda train, limit: _cifar(folder, chosen, train, limit, seed)
    first, second = _folders(data, val)
    fitting = how or default_preprocess(first, spec=model.spec, input_shape=model.shapes[0])
    size = (model.shapes[0][2], model.shapes[0][3])
    return lambda train, limit: _files(first if train else second, fitting, size, limit, seed)


def some(labels: torch.Tensor, limit: int | None, seed: int) -> torch.Tensor:
    """Return the indices of so many images, as many of each class as can be."""
    if limit is None or limit >= len(labels):
        return torch.arange(len(labels))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    turn = torch.zeros(len(labels), dtype=torch.int64)
    for label in labels.unique():
        mine = labels[order] == label
        turn[mine] = torch.arange(int(mine.sum()))
    return order[turn.argsort(stable=True)][:limit]


def _example(name: str, limit: int | None, seed: int) -> tuple[Split, Split]:
    example = examples.load(name)
    how = Preprocess(mean=example.mean, std=example.std)
    chosen = some(example.train_labels, limit, seed)
    train = InMemory(
        f"{name}, training images", example.classes, how, example.train_images[chosen], example.train_labels[chosen]
    )
    return train, InMemory(f"{name}, test images", example.classes, how, example.test_images, example.test_labels)


def _cifar(folder: Path, how: Preprocess, train: bool, limit: int | None, seed: int) -> Split:
    images, labels, classes = cifar.read(folder, train=train)
    chosen = some(labels, limit, seed)
    return InMemory(
        f"{folder.name}, {'training' if train else 'test'} images", classes, how, images[chosen], labels[chosen]
    )


def _folders(data: str, val: str | None) -> tuple[str, str]:
    """Return the folder to train on and the one to test on."""
    folder = Path(data).expanduser()
    inside = {entry.name.lower(): entry for entry in folder.iterdir() if entry.is_dir()} if folder.is_dir() else {}
    first = next((str(inside[name]) for name in _TRAIN if name in inside), None)
    second = next((str(inside[name]) for name in _TEST if name in inside), None)
    if first is None:
        if not folder.is_dir():
            find_files(data)  # says what is wrong with it
        first, second = data, None
    if val is None and second is None:
        raise SourceError(
            "nothing says what to test on",
            where=data,
            hint="give --val DIR, or a folder that holds train and test (or val)",
        )
    return first, val or second or ""


def _files(data: str, how: Preprocess, size: tuple[int, int], limit: int | None, seed: int) -> Split:
    classes, files = find_files(data, limit=limit, seed=seed)
    height, width = size
    whole = how.resize is None and how.crop is None
    if how.channels * height * width * len(files) > _IN_MEMORY or not whole:
        return OnDisk(data, classes, how, files, size, min(2, os.cpu_count() or 1))
    pillow = import_pillow()

    def pixels(entry: tuple[int, Path]) -> torch.Tensor:
        return torch.from_numpy(how.pixels(decode(entry[1], pillow), where=str(entry[1])).copy()).permute(2, 0, 1)

    with ThreadPoolExecutor(_READERS) as pool:
        images = list(pool.map(pixels, files))
    _check_sizes(images, files)
    return InMemory(data, classes, how, torch.stack(images), torch.tensor([label for label, _ in files]))


def _check_sizes(images: Sequence[torch.Tensor], files: Sequence[tuple[int, Path]]) -> None:
    for image, (_, file) in zip(images, files, strict=True):
        if image.shape != images[0].shape:
            here, there = ("x".join(map(str, found.shape[1:])) for found in (image, images[0]))
            raise SourceError(
                f"images of different sizes do not make a batch: this one is {here}, and {files[0][1]} is {there}",
                where=str(file),
                hint="give the size that the model takes: --preprocess resize=256,crop=224,...",
            )
