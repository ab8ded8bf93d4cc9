"""What is minimised: cross entropy, with auxiliary heads and a teacher where there are any.

    L = (1 - a) CE(z, y) + a T^2 KL(softmax(t / T) || softmax(z / T)) + 0.3 sum over auxiliary heads of CE(z_i, y)

z are the network's logits, t the teacher's, a is the share of the teacher and T the temperature. Hinton et al.,
Distilling the Knowledge in a Neural Network, 2015; the weight of auxiliary heads is that of Szegedy et al., CVPR 2015.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...compiler.errors import OptionError
from .recipe import Recipe

AUXILIARY: Final = 0.3


class Objective:
    """Computes the loss of a batch."""

    def __init__(self, recipe: Recipe, teacher: nn.Module | None) -> None:
        self.recipe, self.teacher = recipe, teacher

    def __call__(self, output: object, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over a batch.

        Args:
            output: Logits [B, classes], or a tuple or mapping of which the first are the answer and others are heads'.
            images: For the teacher.
            labels: int64 [B].

        Raises:
            OptionError: The teacher has other outputs.
        """
        logits, *heads = all_logits(output)
        smoothing, share = self.recipe.label_smoothing, self.recipe.distill
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if self.teacher is not None and share:
            with torch.no_grad():
                taught = all_logits(self.teacher(images))[0]
            if taught.shape != logits.shape:
                raise OptionError(
                    f"the teacher has {taught.shape[1]} outputs and the network {logits.shape[1]}",
                    where="--distill",
                    hint="--teacher MODEL, a network of the same classes",
                )
            loss = (1 - share) * loss + share * distillation(logits, taught, self.recipe.temperature)
        for head in heads:
            loss = loss + AUXILIARY * F.cross_entropy(head, labels, label_smoothing=smoothing)
        return loss


def distillation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(taught / T) || softmax(logits / T)), the mean over the batch."""
    mine, theirs = F.log_softmax(logits / temperature, 1), F.log_softmax(taught / temperature, 1)
    return F.kl_div(mine, theirs, reduction="batchmean", log_target=True) * temperature**2


def all_logits(output: object) -> list[Tensor]:
    """Return the answer and what auxiliary heads say."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        named = cast("Mapping[str, Any]", output)
        values = [named["out"], *(v for k, v in named.items() if k != "out")] if "out" in named else [*named.values()]
    else:
        values = list(cast("tuple[Any, ...]", output)) if isinstance(output, tuple | list) else []
    return [value for value in values if isinstance(value, Tensor)]
