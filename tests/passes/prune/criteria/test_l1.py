"""l1: sums of absolute values."""

import numpy as np
import pytest
import torch

from secateur.compiler.dependency import ParamSlice, Role
from support.scores import WEIGHT, score, use


def test_rows_and_columns() -> None:
    assert score("l1", WEIGHT, use(0)) == pytest.approx([7.0, 5.0])
    assert score("l1", WEIGHT, use(1, role=Role.CONSUMES)) == pytest.approx([4.0, 6.0, 2.0])


def test_kernels_are_summed() -> None:
    assert score("l1", WEIGHT[:, :, None].expand(2, 3, 4), use(0)) == pytest.approx([28.0, 20.0])


def test_columns_of_groups() -> None:
    grouped = torch.arange(12.0).reshape(4, 3, 1)  # two groups of two rows
    found = score("l1", grouped, use(1, role=Role.CONSUMES, rows=2))
    assert found is not None
    assert np.array_equal(found, [[3.0, 5.0, 7.0], [15.0, 17.0, 19.0]])


@pytest.mark.parametrize("of", [use(name="a.bias"), use(kind="batch_norm"), use(name="a.running_mean")])
def test_only_weights_count(of: ParamSlice) -> None:
    assert score("l1", WEIGHT[:, 0], of) is None
