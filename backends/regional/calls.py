"""How a model that is Python around networks is called: with a batch of images, or with a list of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from ...compiler.errors import OptionError
from ...compiler.recording import unchanged

Convention = Literal["batch", "list"]
CONVENTIONS: Final[tuple[Convention, ...]] = ("list", "batch")
"""In the order in which they are tried: detectors take lists, and many take batches for lists."""


def random_images(shapes: Sequence[Sequence[int]], seed: int) -> list[Tensor]:
    """Return inputs of the given shapes, [N, C, ...], of numbers from 0 to 1, as pixels are."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(tuple(shape), generator=generator) for shape in shapes]


def arguments(convention: Convention, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return what a model is called with."""
    return tuple(list(tensor) for tensor in tensors) if convention == "list" else tuple(tensors)


def convention_of(model: nn.Module, tensors: Sequence[Tensor]) -> Convention:
    """Find out how a model is called.

    Args:
        model: In evaluation mode; it is left as it is.
        tensors: A batch for every positional input.

    Raises:
        OptionError: It takes neither; says what it said to a batch.
    """
    reasons: dict[Convention, str] = {}
    for convention in CONVENTIONS:
        try:
            with torch.no_grad(), unchanged(model), torch.random.fork_rng(devices=[]):
                model(*arguments(convention, tensors))
        except Exception as error:  # whatever its code says to what it was not written for
            reasons[convention] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        else:
            return convention
    raise OptionError(
        f"{type(model).__name__} runs neither on a batch of images nor on a list of them: {reasons['batch']}",
        hint="give --input shapes that it takes; in Python, secateur.prune_regions takes any arguments",
    )
