"""Where images come from: folders, one per class; a plain folder; or the images of an embedded example.

``ImageFolder`` layout, as in torchvision: ``DIR/CLASS/anything.jpg``, classes in sorted order. Errors about the layout
come from :func:`open_images`; errors about a file come when it is read.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from .. import examples
from ..errors import OptionError, SourceError
from .preprocess import Preprocess, default_for, import_pillow

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

T = TypeVar("T")
Split = Literal["train", "test"]
Batch = tuple["Tensor", "Tensor | None"]
"""Images float32 (B, C, H, W), and labels int64 (B,) where they were asked for."""

SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SPLITS: Final = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_SAMPLED = 32
"""Images whose size is looked at, to tell whether all have the same; all of them would take minutes on ImageNet."""
_SHOWN = 8
"""Names of a folder's contents in a message."""
_READERS = 8
"""Threads that read images, at most."""


@dataclass(frozen=True, eq=False)
class Item:
    """One image: what it is called in errors, its label, and how to get it: float32 (C, H, W)."""

    name: str
    label: int
    read: Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in a fixed order, in which every prefix is as balanced over the classes as can be; may be iterated again.

    Attributes:
        name: What to call the data in a report: the folder, or the example and its split.
        classes: Class names in the order of their labels; ``None`` where no labels were asked for.
        items: The images; nothing is decoded before it is needed, and nothing is kept.
        batch_size: Images per batch; the last batch may be smaller.
    """

    name: str
    classes: tuple[str, ...] | None
    items: tuple[Item, ...]
    batch_size: int

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.items)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches: images float32 (B, C, H, W), labels int64 (B,) or ``None``.

        Raises:
            SourceError: An image does not decode, is too small, or has another size than the first; names the file.
        """
        import torch

        # Decoders let go of the interpreter's lock. Batches are read one by one: nothing piles up in memory.
        with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
            shape: Sequence[int] | None = None
            for start in range(0, len(self.items), self.batch_size):
                batch = self.items[start : start + self.batch_size]
                images = list(pool.map(_read, batch))
                shape = images[0].shape if shape is None else shape
                for item, image in zip(batch, images, strict=True):
                    if image.shape != shape:
                        raise self._uneven(item, image.shape, shape)
                labels = torch.tensor([item.label for item in batch]) if self.classes is not None else None
                yield torch.stack(images), labels

    def _uneven(self, item: Item, shape: Sequence[int], first: Sequence[int]) -> SourceError:
        here, there = (f"{height}x{width}" for _, height, width in (shape, first))
        return SourceError(
            f"images of different sizes do not make a batch: this one is {here}, and {self.items[0].name} is {there}",
            where=item.name,
            hint="give the size that the model takes: --preprocess resize=256,crop=224,...",
        )


def _read(item: Item) -> Tensor:
    return item.read()


def open_images(
    data: str,
    *,
    preprocess: Preprocess,
    labelled: bool,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    split: Split = "test",
) -> ImageSet:
    """Find images.

    Args:
        data: A folder, with a folder per class or, where no labels are needed, with images anywhere in it. Or the name
            of an embedded example, which wins over a folder of that name.
        preprocess: How an image becomes an input; see :func:`default_preprocess`.
        labelled: Whether labels are needed.
        limit: Use this many images at most: as many of each class as can be. With the same seed the images of a smaller
            limit are among those of a larger one.
        seed: Determines which images a limit chooses, and the order.
        batch_size: Images per batch.
        split: Which of an example's images: ``train`` to calibrate and train, ``test`` to evaluate. Folders have none.

    Raises:
        SourceError: There is no such folder, or there are no images or no labels in it.
        OptionError: ``limit`` or ``batch_size`` is less than 1, or ``preprocess`` does not fit an example's images.
    """
    for name, number in (("limit", limit), ("batch size", batch_size)):
        if number is not None and number < 1:
            raise OptionError(f"the {name} is {number}", hint="1 or more images")
    if data in examples.names():
        return _from_example(data, split, preprocess, labelled, limit, seed, batch_size)
    by_class = _find(data, labelled)
    pillow = import_pillow()

    def item(label: int, file: Path) -> Item:
        return Item(str(file), label, lambda: preprocess.apply(decode(file, pillow), where=str(file)))

    chosen = _balanced(list(by_class.values()), limit, seed)
    items = tuple(item(label, file) for label, file in chosen)
    return ImageSet(data, tuple(by_class) if labelled else None, items, batch_size)


def find_files(
    data: str, *, limit: int | None = None, seed: int = 0
) -> tuple[tuple[str, ...], tuple[tuple[int, Path], ...]]:
    """Find labelled images in a folder with a folder per class, without opening them.

    Args:
        data: The folder.
        limit: See :func:`open_images`.
        seed: Determines which images a limit chooses, and the order.

    Returns:
        Class names in the order of their labels; (label, file) of every image.

    Raises:
        SourceError: See :func:`open_images`.
    """
    by_class = _find(data, labelled=True)
    return tuple(by_class), tuple(_balanced(list(by_class.values()), limit, seed))


def default_preprocess(data: str, *, spec: Mapping[str, Any] | None, input_shape: Sequence[int]) -> Preprocess:
    """Return how images are prepared when the user says nothing: see ``preprocess.default_for``.

    An embedded example's images are prepared in one way only, whatever the model.

    Args:
        data: See :func:`open_images`.
        spec: The record of the model's source; ``None`` for a model in memory.
        input_shape: Of the model's input, (N, C, H, W).

    Raises:
        SourceError: See :func:`open_images`.
        OptionError: No default is known for such an input.
    """
    if data in examples.names():
        return _example_preprocess(examples.load(data))
    files = [file for files in _find(data, labelled=False).values() for file in files]
    sizes = {_size(file) for file in files[:: max(1, len(files) // _SAMPLED)]}
    return default_for(spec, input_shape, image_size=sizes.pop() if len(sizes) == 1 else None)


def _balanced(groups: Sequence[Sequence[T]], limit: int | None, seed: int) -> list[tuple[int, T]]:
    """Return (group, member): one of each group in turn, both shuffled, until the limit or until all are used.

    Interleaved even without a limit, so that the accuracy so far means something while an evaluation runs.
    """
    generator = random.Random(seed)
    pools = [generator.sample(group, len(group)) for group in groups]
    order: list[tuple[int, T]] = []
    turn = [label for label, pool in enumerate(pools) if pool]
    while turn and (limit is None or len(order) < limit):
        generator.shuffle(turn)  # else a limit that no number of rounds fills would always favour the first classes
        order += [(label, pools[label].pop()) for label in turn]
        turn = [label for label in turn if pools[label]]
    return order[:limit]


# Embedded examples.


def _from_example(
    name: str, split: Split, preprocess: Preprocess, labelled: bool, limit: int | None, seed: int, batch_size: int
) -> ImageSet:
    example = examples.load(name)
    own = _example_preprocess(example)
    if preprocess != own:
        raise OptionError(
            f"the images of '{name}' are {'x'.join(map(str, example.input_shape[1:]))} and come prepared with {own}",
            where=f"--preprocess {preprocess}",
            hint="leave --preprocess out, or name a folder of images",
        )
    if split == "train":
        title, images, labels = f"{name}, training images", example.train_images, example.train_labels
    else:
        title, images, labels = f"{name}, test images", example.test_images, example.test_labels

    def item(label: int, index: int) -> Item:
        return Item(f"image {index} of {title}", label, lambda: images[index])

    groups = [(labels == label).nonzero().flatten().tolist() for label in range(len(example.classes))]
    items = tuple(item(label, index) for label, index in _balanced(groups, limit, seed))
    return ImageSet(title, example.classes if labelled else None, items, batch_size)


def _example_preprocess(example: examples.Example) -> Preprocess:
    return Preprocess(mean=example.mean, std=example.std)


# Folders.


def _find(data: str, labelled: bool) -> dict[str, list[Path]]:
    """Return the images by class, both sorted; loose images come under the class ``""``.

    Raises:
        SourceError: There is no such folder, no image in it, or its layout does not tell the labels.
    """
    try:
        folder = Path(data).expanduser()
        found = bool(data) and folder.is_dir()  # no text at all would be the current directory
    except (OSError, RuntimeError) as error:  # a name that is too long, a home that nobody has
        raise SourceError(f"'{data[:80]}' is no folder: {error}", hint="name a folder of images") from error
    if not found:
        raise _no_folder(data, folder)
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        by_class = {entry.name: list(_images_below(entry)) for entry in entries if entry.is_dir()}
    except OSError as error:
        raise SourceError(f"cannot read the folder: {error.strerror}", where=str(error.filename)) from error
    loose = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in SUFFIXES]
    if not loose and not any(by_class.values()):
        raise SourceError(
            f"there are no images in '{data}'",
            where=str(folder.absolute()),
            hint=f"{_contents(folder)}; files that end in {' '.join(SUFFIXES)} are images",
        )
    filled = [name for name, files in by_class.items() if files]
    if not loose and all(name.lower() in _SPLITS for name in filled):
        raise SourceError(
            f"'{data}' holds the parts of a data set, not classes: {', '.join(filled)}",
            where=str(folder.absolute()),
            hint=f"name one of them: {folder / filled[0]}",
        )
    if labelled:
        _check_layout(data, folder, by_class, loose)
    return {"": loose, **by_class} if loose else by_class


def _check_layout(data: str, folder: Path, by_class: Mapping[str, Sequence[Path]], loose: Sequence[Path]) -> None:
    where = str(folder.absolute())
    if loose:
        total = len(loose) + sum(map(len, by_class.values()))
        raise SourceError(
            f"labels are needed, and {len(loose):,} of {total:,} images in '{data}' are in no class folder",
            where=str(loose[0].absolute()),
            hint="put the images of each class into a folder of their own: DIR/CLASS/image.jpg",
        )
    empty = [name for name, files in by_class.items() if not files]
    if empty:
        raise SourceError(
            f"the class folder '{empty[0]}' of '{data}' holds no images",
            where=where,
            hint=f"fill or remove it; images end in {' '.join(SUFFIXES)}",
        )


def _images_below(folder: Path) -> Generator[Path]:
    """Yield images in order of their paths, following links as torchvision does, hidden files left out."""

    def stop(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(parent, name)


def _no_folder(data: str, folder: Path) -> SourceError:
    if folder.is_file():
        return SourceError(
            f"'{data}' is a file, and a folder of images is needed",
            where=str(folder.absolute()),
            hint="unpack it, and name the folder" if folder.suffix in (".gz", ".tar", ".tgz", ".zip") else None,
        )
    parent = next(parent for parent in folder.absolute().parents if parent.is_dir())
    near = get_close_matches(data, examples.names(), n=1)
    hint = f"did you mean the embedded example '{near[0]}'? " if near else ""
    return SourceError(
        f"there is no folder '{data}'",
        where=str(folder.absolute()),
        hint=f"{hint}{_contents(parent)}; embedded examples: {', '.join(examples.names())}",
    )


def _contents(folder: Path) -> str:
    """Say what is in a folder, in a few words."""
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror}"
    if not names:
        return f"{folder} is empty"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{folder} holds {', '.join(names[:_SHOWN])}{more}"


def _size(file: Path) -> tuple[int, int]:
    """Return height and width, from the file's header.

    Raises:
        SourceError: The file is no image that Pillow knows.
    """
    pillow = import_pillow()
    try:
        with pillow.open(file) as image:
            return image.height, image.width
    except Exception as error:
        raise _undecodable(file, error) from error


def decode(file: Path, pillow: Any) -> Image.Image:
    """Return an image.

    Raises:
        SourceError: It cannot be decoded.
    """
    try:
        with pillow.open(file) as image:
            image.load()
            return image
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, and more
        raise _undecodable(file, error) from error


def _undecodable(file: Path, error: Exception) -> SourceError:
    reason = " ".join(str(error).replace(str(file), file.name).split())
    return SourceError(
        f"an image does not decode: {reason or type(error).__name__}", where=str(file), hint="repair or remove the file"
    )
