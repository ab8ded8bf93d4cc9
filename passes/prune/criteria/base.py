"""What a criterion is, and what it may look at.

Every criterion answers one question: ``score(context)`` is an array over channel classes, higher means more important,
nan where it has nothing to say. Most look at one axis of one tensor at a time; they derive from
:class:`SliceCriterion`, which puts together what they say of a class. The others read the whole :class:`Context`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ....compiler.dependency import ChannelDependencies, Classes, ParamSlice
from ....compiler.program import Program
from ...calibration import Batch

Scores = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Aggregate = Literal["mean", "sum", "max", "product"]
Progress = Callable[[str], None]
Choice = Callable[[Scores], Bools]


def _silent(text: str) -> None:
    del text


@dataclass(frozen=True, eq=False)
class Context:
    """What criteria look at. Nothing in it may be changed: the program's tensors are the user's."""

    program: Program
    deps: ChannelDependencies
    batches: tuple[Batch, ...] = ()
    """Calibration data, on the CPU; never empty for a criterion that needs some."""
    aggregate: Aggregate = "mean"
    """How everything that is said of one class becomes one number."""
    seed: int = 0
    progress: Progress = _silent
    """Told, in a few words, what is being computed."""
    choice: Choice | None = None
    """Which classes would stay if these were the scores; ``None`` where scores are all that is asked for."""

    @property
    def classes(self) -> int:
        """Number of channel classes: the length of every array of scores."""
        return int(self.deps.class_of.max()) + 1 if len(self.deps.class_of) else 0

    def generator(self) -> np.random.Generator:
        """Return seeded noise, from its start."""
        return np.random.default_rng(self.seed)

    def slices(self) -> Iterator[tuple[ParamSlice, Tensor]]:
        """Yield every slice with its tensor, those of a tensor with several names under the first name only."""
        for use in self.deps.slices:
            if use.name not in self.deps.shared:
                value: Any = self.program.attribute(use.name)
                yield use, value

    def combine(self, parts: Iterable[tuple[Classes, Scores]]) -> Scores:
        """Put together what was said of each class.

        mean     sum_i s_i / n
        sum      sum_i s_i
        max      max_i s_i
        product  (prod_i s_i)^(1/n), the geometric mean: orders as the product does, and does not overflow

        Args:
            parts: Pairs of classes and their scores, of equal shape. A class that stands in a part several times (a
                flattened feature map) counts with all of its positions.

        Returns:
            [classes]; nan where nothing was said.
        """
        largest = self.aggregate == "max"
        total = np.full(self.classes, -np.inf) if largest else np.zeros(self.classes)
        seen = np.zeros(self.classes)
        for classes, scores in parts:
            at, values = classes.ravel(), scores.ravel()
            if self.aggregate == "product":
                with np.errstate(divide="ignore"):
                    values = np.log(values)
            (np.maximum if largest else np.add).at(total, at, values)
            np.add.at(seen, at, 1.0)
        if self.aggregate in ("mean", "product"):
            np.divide(total, seen, out=total, where=seen > 0)
        if self.aggregate == "product":
            total = np.exp(total)
        return np.where(seen > 0, total, np.nan)


class Criterion(Protocol):
    """Scores channel classes."""

    needs_data: ClassVar[bool]
    """Whether it reads ``context.batches``."""
    fallback: ClassVar[str | None]
    """Criterion for classes that this one says nothing about (a net without batch norm); ``None`` for none."""
    estimates_loss: ClassVar[bool]
    """Whether scores are what the loss rises by: then they add up over channels, and compare between groups."""

    def score(self, context: Context) -> Scores:
        """Return non-negative scores [classes], higher for what matters more; nan where there is nothing to say.

        The same context gives the same scores: draw from ``context.generator()``, and sum in a fixed order.
        """
        ...


class SliceCriterion(ABC):
    """A criterion that scores one axis of one tensor at a time."""

    needs_data: ClassVar[bool] = False
    fallback: ClassVar[str | None] = None
    estimates_loss: ClassVar[bool] = False

    def score(self, context: Context) -> Scores:
        """Combine the scores of all slices; see :class:`Criterion`."""
        return context.combine(self._parts(context))

    def _parts(self, context: Context) -> Iterator[tuple[Classes, Scores]]:
        generator = context.generator()
        for use, tensor in context.slices():
            scores = self.of_slice(tensor, use, generator)
            if scores is not None:
                yield context.deps.class_of[use.atoms], scores

    @abstractmethod
    def of_slice(self, tensor: Tensor, use: ParamSlice, generator: np.random.Generator) -> Scores | None:
        """Score the channels along one axis of one tensor.

        Args:
            tensor: The parameter or buffer.
            use: Which axis of it is indexed by which channels, and what for. ``use.atoms`` is a vector, or
                (groups, channels per group) for axis 1 of a grouped convolution's weight.
            generator: Seeded noise, for criteria that need it.

        Returns:
            Non-negative scores in the shape of ``use.atoms``; ``None`` to leave this slice out.
        """
