"""Scoring by hand: one tensor slice, or a small module on a few batches."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.dependency import ParamSlice, Role
from secateur.passes.calibration import read
from secateur.passes.prune.criteria import criterion
from secateur.passes.prune.criteria.base import Context, Scores, SliceCriterion

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
    """What a fresh criterion says of one slice."""
    scorer = criterion(name)
    assert isinstance(scorer, SliceCriterion)
    return scorer.of_slice(tensor, of, np.random.default_rng(seed))


def context_of(module: nn.Module, *data: Any, **options: Any) -> Context:
    """A context of a module, captured for the inputs of the first batch."""
    inputs = data[0] if isinstance(data[0], Tensor) else data[0][0]
    program = trace(module.eval(), inputs)
    return Context(program, analyze(program), read(data, program), **options)


def scores_at(context: Context, name: str, layer: str, axis: int = 0) -> list[float]:
    """A criterion's scores of the channels along an axis of a layer's weight; nan where it says nothing."""
    use = next(use for use in context.deps.slices if (use.name, use.axis) == (f"{layer}.weight", axis))
    return criterion(name).score(context)[context.deps.class_of[use.atoms.ravel()]].tolist()


def linear(*rows: list[float], bias: list[float] | None = None) -> nn.Linear:
    """A linear layer with the given weight [O, I]."""
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer
