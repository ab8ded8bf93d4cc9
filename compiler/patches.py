"""What every output position of a convolution or linear layer reads: the layer as a matrix product.

    y[s, g, o] = b[g, o] + sum over j of x[s, g, j] W[g, o, j]        j = (input channel of the group, kernel position)

    conv    weight [g O/g, I/g, k...]   samples s are (image, output position), j runs over I/g prod(k)
    linear  weight [O, I]               samples are (image, leading axes), j runs over I

Statistics of x over a data set say how a layer's output changes with its weight, which is what criteria and
compensation that look at data need. Of a large feature map some positions are drawn: neighbours are much alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from .ops import Call
from .shapes import concrete

SMALL: Final = 256
"""Below so many columns, halving the work does not pay."""
STRIPES: Final = 6
_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


@dataclass(frozen=True)
class Positions:
    """Drawn output positions of a batch: index tensors [S], one for the image and one per spatial axis."""

    index: tuple[Tensor, ...]

    def take(self, output: Tensor, channel_axis: int) -> Tensor:
        """Return an output's channels at the positions: [S, O]."""
        return output.movedim(channel_axis, -1)[self.index]


def groups_of(call: Call) -> int:
    """Return the number of groups of a convolution; 1 for a linear layer."""
    return 1 if call.key == "linear" else int(concrete(call["groups"]))


def channel_axis(call: Call, output: Tensor) -> int:
    """Return the axis of a layer's output channels."""
    return output.ndim - 1 if call.key == "linear" else output.ndim - 1 - _taps(call)


def draw(shape: Sequence[int], channel_axis: int, limit: int, generator: torch.Generator) -> Positions:
    """Draw as many positions of every image, ``limit`` in all at most; all of them where there are no more.

    Args:
        shape: Of the output.
        channel_axis: The axis that is no position.
        limit: Samples at most.
        generator: Of the draw.
    """
    sizes = [size for axis, size in enumerate(shape) if axis != channel_axis]
    images, inner = sizes[0], int(torch.tensor(sizes[1:]).prod()) if len(sizes) > 1 else 1
    each = max(1, limit // images)
    if each >= inner:
        flat = torch.arange(images * inner)
    else:
        spots = torch.rand(images, inner, generator=generator).argsort(1)[:, :each].sort(1).values
        flat = (torch.arange(images)[:, None] * inner + spots).ravel()
    return Positions(tuple(torch.unravel_index(flat, sizes)))


def patches(call: Call, input: Tensor, positions: Positions) -> Tensor:
    """Return what the layer reads at some positions of its output: [S, g, J].

    Args:
        call: A convolution or a linear layer, called as a module or with plain arguments.
        input: conv [N, I, size...], linear [..., I].
        positions: Drawn from the output.
    """
    if call.key == "linear":
        return input[positions.index].unsqueeze(1)
    rank, weight = _taps(call), call["weight"]
    kernel = tuple(weight.shape[2:])
    stride, dilation = (_tuple(call[name], rank) for name in ("stride", "dilation"))
    padded = _padded(call, input, kernel, dilation)
    for axis in range(rank):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        padded = padded.unfold(2 + axis, reach, stride[axis])[..., :: dilation[axis]]
    image, *spots = positions.index
    windows = padded.movedim(1, 1 + rank)[(image, *spots)]  # [S, I, k...]
    return windows.reshape(len(image), groups_of(call), -1)


def gram(samples: Tensor) -> Tensor:
    """Return X^T X [g, J, J] of samples X [g, S, J]. Of large ones little more than half is computed, and mirrored."""
    width = samples.shape[2]
    if width < SMALL:
        return samples.transpose(1, 2) @ samples
    found, step = samples.new_empty(len(samples), width, width), -(-width // STRIPES)
    for begin in range(0, width, step):
        end = begin + step
        found[:, begin:end, begin:] = samples[:, :, begin:end].transpose(1, 2) @ samples[:, :, begin:]
        found[:, end:, begin:end] = found[:, begin:end, end:].transpose(1, 2)
    return found


def _taps(call: Call) -> int:
    return call["weight"].ndim - 2


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    value = concrete(value)
    return tuple(value) if isinstance(value, (tuple, list)) else (int(value),) * rank


def _padded(call: Call, input: Tensor, kernel: Sequence[int], dilation: Sequence[int]) -> Tensor:
    padding = concrete(call["padding"])
    if padding == "valid":
        return input
    if padding == "same":  # the odd one out is added behind
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in _tuple(padding, len(kernel))]
    if not any(map(any, sides)):
        return input
    mode = _MODES[getattr(call.module, "padding_mode", "zeros")]
    return F.pad(input, [side for pair in reversed(sides) for side in pair], mode=mode)
