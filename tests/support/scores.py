"""Scoring one tensor slice by hand."""

import numpy as np
import torch

from secateur.compiler.dependency import ParamSlice, Role
from secateur.passes.prune.criteria import criterion
from secateur.passes.prune.criteria.base import Scores

WEIGHT = torch.tensor([[3.0, -4.0, 0.0], [1.0, 2.0, -2.0]])
"""[O = 2, I = 3]."""


def use(
    axis: int = 0, *, name: str = "a.weight", role: Role = Role.PRODUCES, kind: str = "conv", rows: int = 0
) -> ParamSlice:
    """A use of WEIGHT, or of a grouped weight with ``rows`` groups of its columns."""
    size = WEIGHT.shape[axis]
    atoms = np.arange(rows * size).reshape(rows, size) if rows else np.arange(size)
    return ParamSlice(name, axis, atoms, role, "a", kind)


def score(name: str, tensor: torch.Tensor, of: ParamSlice, seed: int = 0) -> Scores | None:
    """What a fresh criterion says."""
    return criterion(name).score(tensor, of, np.random.default_rng(seed))
