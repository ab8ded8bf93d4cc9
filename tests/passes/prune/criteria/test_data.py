"""Reading calibration data."""

from typing import Any

import pytest
import torch

from secateur.compiler.errors import SourceError
from secateur.compiler.program import InputSpec
from secateur.passes.prune.criteria.data import read

IMAGES = torch.zeros(4, 3, 8, 8)
LABELS = torch.tensor([0, 1, 2, 1])
INPUT = (InputSpec("x", (1, 3, 8, 8)),)
TWO = (*INPUT, InputSpec("y", (1, 5)))


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


@pytest.mark.parametrize(
    ("data", "inputs", "message"),
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
def test_what_is_refused(data: list[Any], inputs: tuple[InputSpec, ...], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(data, inputs)
