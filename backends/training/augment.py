"""Random changes of training images, a whole batch at once, each image its own; drawn from a given generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 4
"""Pixels by which an image is moved at most, each way."""


def shift_flip(images: Tensor, generator: torch.Generator, *, shift: int = SHIFT) -> Tensor:
    """Pad with zeros, cut out a part of the old size anywhere, and mirror every other image.

    Args:
        images: [N, C, H, W], of any type, on any device; zeros should stand for black, so normalise afterwards.
        generator: Of the draws, on the CPU, so that they are the same for all devices: 2 N + N numbers.
        shift: Pixels of padding on every side.

    Returns:
        [N, C, H, W] in channels-last memory.
    """
    count, _, height, width = images.shape
    device = images.device
    places = torch.randint(0, 2 * shift + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    top, left, flip = torch.cat([places, mirrored[None]]).to(device)  # one transfer
    rows = top[:, None] + torch.arange(height, device=device)
    across = torch.arange(width, device=device).expand(count, -1)
    columns = left[:, None] + torch.where(flip[:, None] > 0, across.flip(1), across)
    padded = F.pad(images, (shift, shift, shift, shift))
    which = torch.arange(count, device=device)[:, None, None]
    found = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return found.permute(0, 3, 1, 2)


def resized_crop(images: Tensor, generator: torch.Generator, *, size: tuple[int, int] | None = None) -> Tensor:
    """Cut out 8 to 100 % of the area with sides of 3:4 to 4:3, resize that, and mirror every other image.

    Szegedy et al., Going Deeper with Convolutions, CVPR 2015, section 6.

    Args:
        images: uint8 or float [N, C, H, W].
        generator: Of the draws, on the CPU.
        size: Height and width of the result; those of the images by default.

    Returns:
        [N, C, *size], of the images' type.
    """
    height, width = images.shape[2:]
    made: list[Tensor] = []
    for image in images:
        top, left, tall, wide = _box(height, width, generator)
        part = image[None, :, top : top + tall, left : left + wide].float()
        part = F.interpolate(part, size or (height, width), mode="bilinear", antialias=True, align_corners=False)
        made.append(part.flip(3) if float(torch.rand((), generator=generator)) < 0.5 else part)
    result = torch.cat(made)
    return result.round().clamp(0, 255).to(images.dtype) if images.dtype == torch.uint8 else result


def _box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw top, left, height and width; after ten boxes that do not fit, the largest square in the middle."""
    for _ in range(10):
        share, bend, down, right = torch.rand(4, generator=generator).tolist()
        area = height * width * (0.08 + 0.92 * share)
        ratio = (4 / 3) ** (2 * bend - 1)
        tall, wide = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < tall <= height and 0 < wide <= width:
            return int(down * (height - tall + 1)), int(right * (width - wide + 1)), tall, wide
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side
