"""Stand-ins for torchvision's compiled operators, where these do not load beside this torch.

Only what its models cannot do without: non-maximum suppression, and pooling of boxes that needs no more memory than its
result. This file needs torch alone.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import torch
from torch import Tensor

_LIBRARIES: list[torch.library.Library] = []
"""Alive as long as the process: a Library that is collected takes its operators with it."""
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_AT_ONCE: Final = 1 << 25
"""Numbers that an intermediate result of pooling has at most."""


def define() -> None:
    """Define the operators without which torchvision does not import."""
    if _LIBRARIES:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    _LIBRARIES.append(library)
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + _SCHEMA)
            if name == "nms":  # qnms serves quantized detectors, which torchvision does not ship
                library.impl(name, greedy_nms, "CompositeExplicitAutograd")


def take_over() -> None:
    """Let the imported torchvision use the stand-ins."""
    # The only check between `torchvision.ops.nms` and the operator; with the stand-in it has to pass.
    importlib.import_module("torchvision.ops.boxes").__dict__["_assert_has_ops"] = lambda: None
    # Its own stand-in samples each box at every pixel of the image, which takes gigabytes, or compiles that with a
    # C++ compiler.
    pooling: Any = importlib.import_module("torchvision.ops.roi_align")
    pooling._roi_align = roi_align


def greedy_nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression: keep the best box, drop those that overlap it too much, go on with the rest.

    Args:
        dets: Boxes (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: A box goes when its intersection over union with a better kept box is larger than this.

    Returns:
        int64 (K,), the indices of the kept boxes, best first.
    """
    if dets.dtype in (torch.float16, torch.bfloat16):
        dets = dets.float()
    areas = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    order = scores.argsort(descending=True, stable=True)
    kept: list[Tensor] = []
    while order.numel():
        best, rest = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(dets[best, :2], dets[rest, :2])
        high = torch.minimum(dets[best, 2:], dets[rest, 2:])
        overlap = (high - low).clamp(min=0).prod(dim=1)
        # Written so that the NaN of two empty boxes keeps both, as the compiled operator does.
        order = rest[~(overlap / (areas[best] + areas[rest] - overlap) > iou_threshold)]
    return torch.stack(kept) if kept else order


def roi_align(
    features: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Pool boxes: the mean of bilinear samples in every bin, as two products of matrices.

        Y[k, c, p, q] = sum_h sum_w A[k, p, h] X[c, h, w] B[k, q, w]

    Bilinear weights are products of one in each direction, and so are their means over a grid: A[k, p] and B[k, q] hold
    what row h and column w weigh in bin (p, q) of box k. He et al., Mask R-CNN, ICCV 2017, section 3.

    Args:
        features: X, (N, C, H, W).
        rois: (K, 5): number of the image, x1, y1, x2, y2.
        spatial_scale: From the boxes' coordinates to those of X.
        pooled_height: Bins.
        pooled_width: Bins.
        sampling_ratio: Samples per bin in each direction; if not positive, as many as the bin has pixels.
        aligned: Whether pixels' centres are at halves.

    Returns:
        (K, C, pooled_height, pooled_width), with a gradient for X.
    """
    _, channels, height, width = features.shape
    parts: list[Tensor] = []
    places: list[Tensor] = []
    offset = 0.5 if aligned else 0.0
    count = max(1, _AT_ONCE // max(1, pooled_height * channels * width))
    for image in range(len(features)):
        for mine in (rois[:, 0] == image).nonzero().flatten().split(count):
            corners = rois[mine, 1:].to(features.dtype) * spatial_scale - offset
            x1, y1, x2, y2 = corners.unbind(1)
            sizes = (y2 - y1, x2 - x1) if aligned else ((y2 - y1).clamp(min=1), (x2 - x1).clamp(min=1))
            rows = _weights(y1, sizes[0], pooled_height, height, sampling_ratio)
            columns = _weights(x1, sizes[1], pooled_width, width, sampling_ratio)
            lines = torch.einsum("kph,chw->kcpw", rows, features[image])
            parts.append(torch.einsum("kcpw,kqw->kcpq", lines, columns))
            places.append(mine)
    if not parts:
        return features.new_zeros((0, channels, pooled_height, pooled_width)) + 0 * features.sum()
    return torch.cat(parts)[torch.cat(places).argsort()]


@torch.no_grad()
def _weights(start: Tensor, size: Tensor, bins: int, length: int, ratio: int) -> Tensor:
    """Return what each pixel of a line weighs in each bin: (K, bins, length)."""
    bin_size = size / bins
    samples = torch.full_like(size, ratio) if ratio > 0 else bin_size.ceil().clamp(min=0)
    number = torch.arange(int(samples.max()) if len(samples) else 0, device=size.device)
    step = (bin_size / samples.clamp(min=1))[:, None, None]
    place = torch.arange(bins, device=size.device)[None, :, None] * bin_size[:, None, None]
    at = start[:, None, None] + place + (number + 0.5) * step
    inside = (number < samples[:, None, None]) & (at >= -1) & (at <= length)
    share = inside.to(size.dtype) / samples.clamp(min=1)[:, None, None]
    at = at.clamp(min=0)
    low = at.floor().long().clamp(max=length - 1)
    part = torch.where(low >= length - 1, torch.zeros_like(at), at - low)
    weights = size.new_zeros((len(size), bins, length))
    weights.scatter_add_(2, low, (1 - part) * share)
    return weights.scatter_add_(2, (low + 1).clamp(max=length - 1), part * share)
