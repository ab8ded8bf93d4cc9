"""l2: Euclidean norms."""

import pytest
import torch

from secateur.compiler.dependency import Role
from support.scores import WEIGHT, score, use


def test_rows_and_columns() -> None:
    assert score("l2", WEIGHT, use(0)) == pytest.approx([5.0, 3.0])
    assert score("l2", WEIGHT, use(1, role=Role.CONSUMES)) == pytest.approx([10**0.5, 20**0.5, 2.0])


def test_columns_of_groups() -> None:
    grouped = torch.tensor([[3.0, 0.0, 1.0], [4.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    found = score("l2", grouped[:, :, None], use(1, role=Role.CONSUMES, rows=2))
    assert found is not None
    assert found.ravel() == pytest.approx([5.0, 1.0, 1.0, 0.0, 2.0, 0.0])


def test_the_transposed_axis_of_a_transposed_convolution() -> None:
    assert score("l2", WEIGHT, use(1, kind="conv_transpose")) == pytest.approx([10**0.5, 20**0.5, 2.0])


def test_a_norm_is_no_weight() -> None:
    assert score("l2", WEIGHT[:, 0], use(kind="layer_norm")) is None
