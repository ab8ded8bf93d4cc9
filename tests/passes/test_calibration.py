"""Reading calibration data."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compiler.capture import trace
from secateur.compiler.errors import SourceError
from secateur.compiler.program import Program
from secateur.passes.calibration import read

IMAGES = torch.zeros(4, 3, 8, 8)
LABELS = torch.tensor([0, 1, 2, 1])


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.mean((1, 2, 3)) + y.sum(1)


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Viewing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1)


INPUT = trace(Plain(), IMAGES)
TWO = trace(Two(), (IMAGES, torch.zeros(4, 5)))


def test_tensors_and_tuples() -> None:
    plain, one, labelled, unlabelled = read([IMAGES, [IMAGES], (IMAGES, LABELS.int()), (IMAGES, None)], INPUT)
    assert plain.labels is None
    assert one.labels is None
    assert unlabelled.labels is None
    assert torch.equal(labelled.inputs[0], IMAGES)
    assert labelled.labels is not None
    assert labelled.labels.dtype == torch.int64
    assert labelled.labels.tolist() == [0, 1, 2, 1]


def test_two_inputs() -> None:
    (batch,) = read([(IMAGES, torch.zeros(4, 5), LABELS)], TWO)
    assert [tuple(x.shape) for x in batch.inputs] == [(4, 3, 8, 8), (4, 5)]
    assert batch.labels is not None


def test_images_lie_as_convolutions_like_them_unless_the_program_looks() -> None:
    (batch,) = read([IMAGES], INPUT)
    assert batch.inputs[0].is_contiguous(memory_format=torch.channels_last)
    viewing = trace(Viewing(), IMAGES)
    (batch,) = read([IMAGES.contiguous(memory_format=torch.channels_last)], viewing)
    assert viewing.module(*batch.inputs).shape == (4, 192)


@pytest.mark.parametrize(
    ("data", "program", "message"),
    [
        ([], INPUT, "there are no calibration data"),
        ([IMAGES[0]], INPUT, r"for 'x' are of shape \(3, 8, 8\), not batches of shape \('N', 3, 8, 8\)"),
        ([IMAGES[:0]], INPUT, r"for 'x' are of shape \(0, 3, 8, 8\)"),
        (["images"], INPUT, "for 'x' are str"),
        ([(IMAGES,)], TWO, "give 1 inputs, the model takes 2"),
        ([(IMAGES, LABELS[:2])], INPUT, r"labels .* are of shape \(2,\), torch.int64, not one integer for each of 4"),
        ([(IMAGES, LABELS / 2)], INPUT, r"labels .* torch.float32, not one integer"),
        ([(IMAGES, "cat")], INPUT, r"labels .* are str"),
    ],
)
def test_what_is_refused(data: list[Any], program: Program, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(data, program)
