"""Images for a model: to calibrate on, and to measure accuracy on. What was opened is recorded, to be opened again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from torch import Tensor

from ..compiler.data.images import ImageSet, default_preprocess, open_images
from ..compiler.data.preprocess import Preprocess
from ..passes.pipeline import PassPipeline
from .inputs import ModelInput

BATCH: Final = 32


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration data with the record by which they can be found again."""

    images: ImageSet
    spec: dict[str, Any]

    def __iter__(self) -> Iterator[Tensor]:
        """Yield batches of images."""
        for images, _ in self.images:
            yield images


def needed_by(pipeline: PassPipeline) -> str:
    """Return the name of the first pass that calibrates; empty if none does."""
    return next((p.name for p in pipeline.passes if any(field.name == "data" for field in fields(p))), "")


def open_for(
    model: ModelInput, data: str, *, preprocess: str | None = None, limit: int | None = None, seed: int = 0
) -> Calibration:
    """Open calibration images: training images of an example, else whatever the folder holds.

    Raises:
        SourceError: There are none, or they cannot be read.
        OptionError: The preprocessing cannot be read, or does not fit.
    """
    how = _preprocess(model, data, preprocess)
    images = open_images(data, preprocess=how, labelled=False, limit=limit, seed=seed, batch_size=BATCH, split="train")
    return Calibration(
        images, {"data": data, "preprocess": str(how), "limit": limit, "seed": seed, "images": len(images)}
    )


def open_again(spec: Mapping[str, Any]) -> Calibration:
    """Open what a report records.

    Raises:
        SourceError: It is not there any more.
    """
    images = open_images(
        str(spec["data"]),
        preprocess=Preprocess.parse(str(spec["preprocess"])),
        labelled=False,
        limit=spec["limit"],
        seed=int(spec["seed"]),
        batch_size=BATCH,
        split="train",
    )
    return Calibration(images, dict(spec))


def open_labelled(
    model: ModelInput,
    data: str,
    *,
    preprocess: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> tuple[ImageSet, str]:
    """Open test images with their classes; also returns the preprocessing as text.

    Raises:
        SourceError: There are none, they have no classes, or they cannot be read.
        OptionError: The preprocessing cannot be read, or does not fit.
    """
    how = _preprocess(model, data, preprocess)
    images = open_images(
        data, preprocess=how, labelled=True, limit=limit, seed=seed, batch_size=batch_size, split="test"
    )
    return images, str(how)


def _preprocess(model: ModelInput, data: str, text: str | None) -> Preprocess:
    if text is not None:
        return Preprocess.parse(text)
    return default_preprocess(data, spec=model.spec, input_shape=model.shapes[0])
