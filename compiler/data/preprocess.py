"""How an image becomes an input: resize, centre crop, scale to [0, 1], normalise; as text, and as a default per model.

    resize=256,crop=224,interpolation=bilinear,mean=0.485:0.456:0.406,std=0.229:0.224:0.225

Every item may be left out: then nothing is resized or cropped, the interpolation is bilinear, and mean and std are
ImageNet's. ``resize=256`` makes the shorter side 256 and keeps the aspect ratio; ``resize=256x192`` (height, width)
makes exactly that size. There are as many channels as ``mean`` has values: 3 for colour, 1 for grey.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

from .. import zoo
from ..errors import MissingExtraError, OptionError, SourceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

Size = int | tuple[int, int]
"""One side, or height and width."""
Interpolation = Literal["bilinear", "bicubic", "nearest"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
CROP_RATIO: Final = 0.875
"""224 / 256: how much of the resized image ImageNet's usual centre crop keeps."""

_OPTION = "--preprocess"
_EXAMPLE = "--preprocess resize=256,crop=224,mean=0.485:0.456:0.406,std=0.229:0.224:0.225"
_MODES = {1: "L", 3: "RGB"}
_DEEP_MODES = ("I", "F")
"""Pillow's modes of more than 8 bits start with these; Pillow would clip them to 255 instead of scaling."""


@dataclass(frozen=True)
class Preprocess:
    """From an image to a float32 tensor (C, H, W): ``((pixel / 255) - mean) / std`` after resizing and cropping.

    The arithmetic is that of torchvision's ``ImageClassification`` transforms on a Pillow image, bit for bit.

    Args:
        resize: The shorter side, or height and width; ``None``: as the image is.
        crop: Height and width of the centre crop (one number: a square); ``None``: all of the image.
        interpolation: How to resize. Bilinear and bicubic take the average when they shrink (antialiasing).
        mean: What is subtracted, one value per channel, for values in [0, 1].
        std: By what is then divided, one value per channel.

    Raises:
        OptionError: A value is out of range, or mean and std do not match; names the item.
    """

    resize: Size | None = None
    crop: Size | None = None
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        for item, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and min(_both(size)) < 1:
                raise _malformed(item, _size_text(size), "sizes of 1 or more")
        if self.interpolation not in get_args(Interpolation):
            raise _malformed("interpolation", self.interpolation, ", ".join(get_args(Interpolation)))
        mean, std = _numbers_text(self.mean), _numbers_text(self.std)
        if len(self.mean) not in _MODES:
            raise _malformed("mean", mean, "3 numbers for colour or 1 for grey, with colons between them")
        if len(self.std) != len(self.mean):
            raise _malformed("std", std, f"as many numbers as mean has: {len(self.mean)}")
        if not all(map(math.isfinite, self.mean)):
            raise _malformed("mean", mean, "finite numbers")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise _malformed("std", std, "finite numbers above 0")
        if self.resize is not None and self.crop is not None:
            self._check_crop_fits(self.resize, _both(self.crop))

    def _check_crop_fits(self, resize: Size, crop: tuple[int, int]) -> None:
        # The longer side depends on the image: what can be known of it is that it is no shorter than the shorter one.
        fits = crop[0] <= resize[0] and crop[1] <= resize[1] if isinstance(resize, tuple) else min(crop) <= resize
        if not fits:
            raise _malformed("crop", _size_text(_shortest(crop)), f"no more than resize={_size_text(resize)}")

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Read the text form; ``str`` gives it back.

        Raises:
            OptionError: Names the item that cannot be read, and what it should look like.
        """
        given: dict[str, Any] = {}
        for item in text.split(","):
            key, equals, value = (part.strip() for part in item.partition("="))
            if key not in _READERS:
                near = get_close_matches(key, _READERS, n=1)
                known = f"did you mean {near[0]}=? " if near else f"known items: {', '.join(_READERS)}. "
                what = f"there is no item '{key}'" if key else "an item is empty"
                raise OptionError(f"{what} in '{text}'", where=_OPTION, hint=f"{known}For example {_EXAMPLE}")
            if not equals or not value:
                raise OptionError(f"'{key}' has no value", where=_OPTION, hint=f"{key}={_EXAMPLES[key]}")
            if key in given:
                raise OptionError(f"'{key}' is given twice in '{text}'", where=_OPTION, hint="give it once")
            given[key] = _READERS[key](key, value)
        return cls(**given)

    def __str__(self) -> str:
        items: list[str] = []
        if self.resize is not None:
            items.append(f"resize={_size_text(self.resize)}")
        if self.crop is not None:
            items.append(f"crop={_size_text(self.crop)}")
        if self.interpolation != "bilinear":
            items.append(f"interpolation={self.interpolation}")
        return ",".join([*items, f"mean={_numbers_text(self.mean)}", f"std={_numbers_text(self.std)}"])

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return len(self.mean)

    def apply(self, image: Image.Image, *, where: str | None = None) -> Tensor:
        """Turn an image into an input.

        Images of other colour modes are converted; an alpha channel is dropped, and a recorded rotation is not applied,
        as in torchvision's ``ImageFolder``.

        Args:
            image: Any 8-bit image.
            where: What the image is called in errors.

        Returns:
            float32 (C, H, W).

        Raises:
            SourceError: It has more than 8 bits per channel, or is smaller than the crop.
        """
        import numpy as np
        import torch

        # In numpy, for images are read in threads, and each of them would start torch's own threads.
        values = np.asarray(self.pixels(image, where=where), dtype=np.float32) / np.float32(255)
        values = (values - np.array(self.mean, dtype=np.float32)) / np.array(self.std, dtype=np.float32)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def pixels(self, image: Image.Image, *, where: str | None = None) -> NDArray[np.uint8]:
        """Resize and crop only: uint8 (H, W, C). Errors are those of :meth:`apply`."""
        import numpy as np

        ready = self._cropped(self._resized(self.converted(image, where=where)), where)
        return np.asarray(ready, dtype=np.uint8).reshape(ready.height, ready.width, self.channels)

    def converted(self, image: Image.Image, *, where: str | None = None) -> Image.Image:
        """Return an image in colour or grey, as the model takes it."""
        return _convert(image, _MODES[self.channels], where)

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.resize is None:
            return image
        width, height = image.size
        if isinstance(self.resize, tuple):
            height, width = self.resize
        elif width <= height:
            width, height = self.resize, int(self.resize * height / width)
        else:
            width, height = int(self.resize * width / height), self.resize
        if (width, height) == image.size:
            return image
        return image.resize((width, height), import_pillow().Resampling[self.interpolation.upper()])

    def _cropped(self, image: Image.Image, where: str | None) -> Image.Image:
        if self.crop is None:
            return image
        height, width = _both(self.crop)
        if width > image.width or height > image.height:
            raise SourceError(
                f"an image of {image.height}x{image.width} pixels is smaller than the crop of {height}x{width}",
                where=where,
                hint=f"{_OPTION} resize={max(height, width)},crop={_size_text(self.crop)},...",
            )
        # Python rounds halves to even; torchvision's centre crop does too.
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))


def import_pillow() -> Any:
    """Return the module ``PIL.Image``, imported only when images are used.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("Pillow, which decodes images, is not installed", hint="pip install pillow") from error
    return Image


def _convert(image: Image.Image, mode: str, where: str | None) -> Image.Image:
    if image.mode.startswith(_DEEP_MODES):
        raise SourceError(
            f"the image has more than 8 bits per channel (Pillow's mode {image.mode}), and how to scale it is unknown",
            where=where,
            hint="convert the images to 8 bits per channel",
        )
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    return image if image.mode == mode else image.convert(mode)


def default_for(
    spec: Mapping[str, Any] | None, input_shape: Sequence[int], *, image_size: tuple[int, int] | None = None
) -> Preprocess:
    """Return how images are prepared for a model when the user says nothing.

    1. Published torchvision weights: their own transforms; resize and crop in proportion if the input has another size.
    2. An embedded example: its own mean and std. A network of the zoo for 32 x 32 images: CIFAR-10's.
    3. Else ImageNet's mean and std.

    In the last two cases images are resized to the input's longer side / 0.875, and the centre is cropped, unless they
    have the input's size already.

    Args:
        spec: The record of a model's source (``sources.ModelSource.spec``, or ``source`` in an artefact's report);
            ``None`` for a model in memory.
        input_shape: Of the model's input, (N, C, H, W).
        image_size: Height and width that all images have, if they have one size and it is known.

    Raises:
        OptionError: The input is no batch of grey or colour images, or no default is known for it.
    """
    if len(input_shape) != 4 or input_shape[1] not in _MODES:
        raise OptionError(
            f"an input of shape {'x'.join(map(str, input_shape))} is no batch of images",
            hint="images give Nx3xHxW (colour) or Nx1xHxW (grey)",
        )
    size = (int(input_shape[2]), int(input_shape[3]))
    while spec is not None and spec.get("kind") in ("artefact", "trained"):  # what it was made from says it
        spec = spec.get("source")
    published = _published(spec or {})
    if published is not None and published.channels == input_shape[1]:
        return _scaled(published, size)
    mean, std = _statistics(spec or {}, int(input_shape[1]))
    if image_size == size:
        return Preprocess(mean=mean, std=std)
    return Preprocess(resize=round(max(size) / CROP_RATIO), crop=_shortest(size), mean=mean, std=std)


def _published(spec: Mapping[str, Any]) -> Preprocess | None:
    """The transforms of the published weights that a source carries, if they are those of a classifier."""
    if spec.get("kind") != "torchvision" or "member" not in spec:
        return None
    from .. import vision

    name, member = str(spec.get("model")), spec["member"]
    published = vision.named_weights(name) if vision.has_model(name) else {}
    if member not in published:
        raise OptionError(
            f"the installed torchvision does not know the weights {member} of {name}, nor their transforms",
            where=_OPTION,
            hint=f"give them: {_EXAMPLE}",
        )
    record = vision.preprocessing(published[member])
    if record is None:
        return None
    return Preprocess(
        resize=record["resize"],
        crop=record["crop"],
        interpolation=record["interpolation"],
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
    )


def _scaled(published: Preprocess, size: tuple[int, int]) -> Preprocess:
    resize, crop = cast("int", published.resize), cast("int", published.crop)
    if size == (crop, crop):
        return published
    return Preprocess(
        resize=round(max(size) * resize / crop),
        crop=_shortest(size),
        interpolation=published.interpolation,
        mean=published.mean,
        std=published.std,
    )


def _statistics(spec: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std where no published weights say them."""
    if spec.get("kind") == "example":
        from .. import examples

        example = examples.load(str(spec.get("model")))
        if len(example.mean) == channels:
            return example.mean, example.std
    if spec.get("kind") == "zoo" and str(spec.get("model")).startswith("cifar-"):
        return zoo.CIFAR_MEAN, zoo.CIFAR_STD
    if channels != len(IMAGENET_MEAN):
        raise OptionError(
            "no mean and std are known for grey images",
            where=_OPTION,
            hint="give those that the model was trained with: --preprocess mean=0.5,std=0.25",
        )
    return IMAGENET_MEAN, IMAGENET_STD


# Text.


def _malformed(item: str, text: str, expected: str) -> OptionError:
    return OptionError(
        f"'{item}={text}' is not valid: expected {expected}", where=_OPTION, hint=f"{item}={_EXAMPLES[item]}"
    )


def _both(size: Size) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _shortest(size: tuple[int, int]) -> Size:
    return size[0] if size[0] == size[1] else size


def _size_text(size: Size) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def _numbers_text(values: Sequence[float]) -> str:
    return ":".join(repr(float(value)) for value in values)


def _read_size(item: str, text: str) -> Size:
    if not re.fullmatch(r"\d{1,5}(x\d{1,5})?", text, re.ASCII):
        raise _malformed(item, text, "a whole number, or HEIGHTxWIDTH")
    first, _, second = text.partition("x")
    return (int(first), int(second)) if second else int(first)


def _read_numbers(item: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(":"))
    except ValueError as error:
        raise _malformed(item, text, "numbers with colons between them") from error


def _read_interpolation(item: str, text: str) -> str:
    return text  # checked with the other values


_READERS: Final = {
    "resize": _read_size,
    "crop": _read_size,
    "interpolation": _read_interpolation,
    "mean": _read_numbers,
    "std": _read_numbers,
}
_EXAMPLES: Final = {
    "resize": "256",
    "crop": "224",
    "interpolation": "bilinear",
    "mean": "0.485:0.456:0.406",
    "std": "0.229:0.224:0.225",
}
