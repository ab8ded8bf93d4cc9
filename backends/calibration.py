"""Images for a model: to calibrate on, and to measure accuracy on. What was opened is recorded, to be opened again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from torch import Tensor

from ..compiler.data.images import ImageSet, default_preprocess, open_images
from ..compiler.data.preprocess import Preprocess
from ..passes.base import Pass
from ..passes.pipeline import PassPipeline
from .inputs import ModelInput
from .report import example_of

BATCH: Final = 32


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration data with the record by which they can be found again."""

    images: ImageSet
    spec: dict[str, Any]

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        """Yield batches of images, with their labels where these are the model's own classes."""
        for images, labels in self.images:
            yield images if labels is None else (images, labels)


def makes_do_with_noise(pipeline: PassPipeline) -> str:
    """Return the name of the first pass that calibrates on noise if nothing better is given; empty if none does."""
    return next((p.name for p in pipeline.passes if takes_data(p) and getattr(p, "noise_will_do", False)), "")


def takes_data(pass_: Pass) -> bool:
    """Tell whether a pass, with the options that it has, looks at calibration data."""
    return any(field.name == "data" for field in fields(pass_)) and getattr(pass_, "calibrates", True)


def open_for(
    model: ModelInput, data: str, *, preprocess: str | None = None, limit: int | None = None, seed: int = 0
) -> Calibration:
    """Open calibration images: training images of an example, else whatever the folder holds.

    The model's own example comes with labels. What folders are called need not be what a model's outputs mean, so their
    images come without.

    Raises:
        SourceError: There are none, or they cannot be read.
        OptionError: The preprocessing cannot be read, or does not fit.
    """
    how, labelled = _preprocess(model, data, preprocess), example_of(model.spec) == data
    images = open_images(
        data, preprocess=how, labelled=labelled, limit=limit, seed=seed, batch_size=BATCH, split="train"
    )
    spec = {"data": data, "preprocess": str(how), "limit": limit, "seed": seed}
    return Calibration(images, {**spec, "images": len(images), "labelled": labelled})


def open_again(spec: Mapping[str, Any]) -> Calibration:
    """Open what a report records.

    Raises:
        SourceError: It is not there any more.
    """
    images = open_images(
        str(spec["data"]),
        preprocess=Preprocess.parse(str(spec["preprocess"])),
        labelled=bool(spec.get("labelled", False)),
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
