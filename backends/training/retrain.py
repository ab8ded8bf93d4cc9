"""Retraining inside a study: a pruned network is trained for a little while, and only then measured.

Training images are parted in two: some are held out to measure on, and networks are trained on the others. So the
images that accuracy is reported for in the end are not looked at.

    SGD with momentum at a constant rate, as in Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 4.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from ...compiler.data.images import ImageSet, Item
from ...compiler.errors import SourceError
from ...compiler.program import Program
from ..inputs import ModelInput
from .data import Data, open_training, some
from .loop import fit
from .recipe import Recipe
from .splits import Share

LR: Final = 0.001
_BATCH: Final = 64


@dataclass(frozen=True, eq=False)
class Retraining:
    """How pruned networks are trained, and on what; the images to test on are those to measure on."""

    data: Data
    recipe: Recipe
    seed: int = 0

    @staticmethod
    def of(
        model: ModelInput,
        data: str,
        epochs: int,
        *,
        lr: float = LR,
        preprocess: str | None = None,
        measured: int | None = None,
        seed: int = 0,
    ) -> Retraining:
        """Open training images, and part them.

        Args:
            model: Says how images are prepared, and of what size they have to be.
            data: As for ``secateur train``; what it has to test on is left alone.
            epochs: Of every network.
            lr: The rate.
            preprocess: As text; by default what belongs to the model.
            measured: So many images are held out, classes in balance.
            seed: Of the choice, and of training.

        Raises:
            SourceError: There are no labelled images, or none are left to train on.
            OptionError: A number is out of range, or the preprocessing does not fit.
        """
        recipe = Recipe(epochs=epochs, lr=lr, schedule="constant")
        split = open_training(model, data, preprocess=preprocess, seed=seed)
        held = some(split.targets(), measured, seed)
        left = torch.ones(len(split), dtype=torch.bool)
        left[held] = False
        if not bool(left.any()):
            raise SourceError(
                f"all {len(split):,} training images are to be measured on, and none are left to retrain on",
                where=data,
                hint="measure on fewer: --images 512",
            )
        train, test = split.part(left.nonzero().ravel()), split.part(held)
        return Retraining(Data(train, test, {"data": data}), recipe, seed)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the result, as JSON."""
        return {"epochs": self.recipe.epochs, "lr": self.recipe.lr, "images": len(self.data.train)}

    def measured(self) -> ImageSet:
        """Return the images that were held out, in memory."""
        split = self.data.test
        batches = split.testing(_BATCH, Share())
        pairs = [pair for images, labels in batches for pair in zip(images, labels.tolist(), strict=True)]
        items = [Item(f"{split.name} {n}", label, lambda x=image: x) for n, (image, label) in enumerate(pairs)]
        return ImageSet(split.name, split.classes, tuple(items), _BATCH)

    def __call__(self, program: Program, progress: Callable[[str], None] = lambda text: None) -> Program:
        """Train a copy of a program, and return it.

        Raises:
            CompilerError: See :func:`.loop.fit`.
        """
        module = copy.deepcopy(program.module)
        fit(module, self.data, self.recipe, program=program, seed=self.seed, progress=progress)
        return replace(program, root=module.to("cpu"))
