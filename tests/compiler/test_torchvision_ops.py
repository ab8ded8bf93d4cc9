"""Stand-ins for torchvision's compiled operators, against plain Python, and against the operators where they load."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from secateur.compiler import vision
from secateur.compiler.torchvision_ops import greedy_nms, roi_align


def boxes(count: int) -> Tensor:
    corners = torch.rand(count, 2)
    return torch.cat([corners, corners + torch.rand(count, 2) * 0.4], dim=1)


def naive_nms(dets: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Pair by pair, in plain Python."""
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: -float(scores[i])):
        ax, ay, bx, by = dets[index].tolist()
        for other in kept:
            cx, cy, dx, dy = dets[other].tolist()
            overlap = max(min(bx, dx) - max(ax, cx), 0) * max(min(by, dy) - max(ay, cy), 0)
            if overlap > threshold * ((bx - ax) * (by - ay) + (dx - cx) * (dy - cy) - overlap):
                break
        else:
            kept.append(index)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_greedy_nms(threshold: float) -> None:
    dets, scores = boxes(60), torch.rand(60)
    kept = greedy_nms(dets, scores, threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == naive_nms(dets, scores, threshold)
    # The compiled operator where it loads, else the stand-in itself, through the dispatcher.
    assert torch.equal(vision.import_torchvision().ops.nms(dets, scores, threshold), kept)


def test_greedy_nms_keeps_empty_boxes_takes_none_and_half_precision() -> None:
    assert greedy_nms(torch.zeros(2, 4), torch.tensor([0.1, 0.2]), 0.5).tolist() == [1, 0]
    empty = greedy_nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert (empty.shape, empty.dtype) == ((0,), torch.int64)
    assert len(greedy_nms(boxes(9).half(), torch.rand(9).half(), 0.5))


def sample(plane: Tensor, y: float, x: float) -> float:
    """Bilinear, as the compiled operator does it at the borders."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = int(y), int(x)
    if top >= height - 1:
        y = top = height - 1
    if left >= width - 1:
        x = left = width - 1
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = float(plane[top, left]) * (1 - dx) + float(plane[top, right]) * dx
    lower = float(plane[below, left]) * (1 - dx) + float(plane[below, right]) * dx
    return upper * (1 - dy) + lower * dy


def naive_roi_align(x: Tensor, rois: Tensor, scale: float, bins: tuple[int, int], ratio: int, aligned: bool) -> Tensor:
    """Sample by sample."""
    result = torch.zeros(len(rois), x.shape[1], *bins, dtype=x.dtype)
    offset = 0.5 if aligned else 0.0
    for k, roi in enumerate(rois):
        x1, y1, x2, y2 = ((roi[1:] * scale) - offset).tolist()
        tall, wide = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        high, broad = tall / bins[0], wide / bins[1]
        rows, columns = (ratio, ratio) if ratio > 0 else (math.ceil(high), math.ceil(broad))
        for c, p, q in itertools.product(range(x.shape[1]), range(bins[0]), range(bins[1])):
            values = [
                sample(
                    x[int(roi[0]), c],
                    y1 + p * high + (i + 0.5) * high / rows,
                    x1 + q * broad + (j + 0.5) * broad / columns,
                )
                for i in range(rows)
                for j in range(columns)
            ]
            result[k, c, p, q] = sum(values) / max(rows * columns, 1)
    return result


ROIS = torch.tensor(
    [
        [1.0, 3.0, 2.0, 30.0, 21.0],
        [0.0, 0.0, 0.0, 40.0, 36.0],
        [0.0, -6.0, -9.0, 12.0, 50.0],
        [1.0, 10.0, 10.0, 10.2, 10.1],
        [0.0, 17.3, 5.1, 39.9, 9.7],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 1, 2, 3])
@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_roi_align(scale: float, ratio: int, aligned: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 9, 10, dtype=torch.float64)
    wanted = naive_roi_align(x, ROIS, scale, (3, 2), ratio, aligned)
    found = roi_align(x, ROIS, scale, 3, 2, ratio, aligned)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    # The compiled operator where it loads, else the stand-in itself, in the place of torchvision's own.
    theirs = vision.import_torchvision().ops.roi_align(x, ROIS, (3, 2), scale, ratio, aligned)
    assert torch.allclose(theirs, wanted, rtol=0, atol=1e-12)


def test_roi_align_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 2, 9, 10, dtype=torch.float64)
    whole = roi_align(x, ROIS, 0.25, 3, 2, 2, False)
    monkeypatch.setattr("secateur.compiler.torchvision_ops._AT_ONCE", 1)
    assert torch.allclose(roi_align(x, ROIS, 0.25, 3, 2, 2, False), whole, rtol=0, atol=1e-12)


def test_roi_align_has_a_gradient_also_for_no_boxes() -> None:
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)

    def pooled(features: Tensor) -> Tensor:
        return roi_align(features, ROIS[:3], 0.125, 2, 2, 2, False)

    check: Callable[..., bool] = torch.autograd.gradcheck
    assert check(pooled, (x,))
    empty = roi_align(x, ROIS[:0], 1.0, 2, 2, 2, False)
    assert empty.shape == (0, 2, 2, 2)
    empty.sum().backward()
    assert x.grad is not None
    assert not x.grad.any()
