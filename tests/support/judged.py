"""A small classifier and images in memory, for tests of what measures programs."""

import torch

from secateur.backends.quality import Judge
from secateur.compiler.data.images import ImageSet, Item
from secateur.compiler.program import Program

from .small import Residual, captured


def program() -> Program:
    """The classifier of :class:`.small.Residual`, with weights of fixed seed."""
    torch.manual_seed(0)
    return captured(Residual())


def images(count: int = 24, *, labelled: bool = True, batch_size: int = 10) -> ImageSet:
    """Random images 3x8x8 of five classes."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(count, 3, 8, 8, generator=generator)
    items = tuple(Item(f"image {i}", i % 5, lambda i=i: values[i]) for i in range(count))
    return ImageSet("random", tuple("abcde") if labelled else None, items, batch_size)


def judge(dense: Program, *, labelled: bool = True) -> Judge:
    """Measures against a dense program on :func:`images`."""
    return Judge(dense, images(labelled=labelled), keep=True, threads=1)
