"""What is known of a tensor, and what the rules that find it read from: see :mod:`.constants`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from .errors import InternalError
from .labels import ChannelLabels
from .ops import Call
from .program import TRAINING, Program
from .shapes import is_tensor, shape_of

if TYPE_CHECKING:
    from .constant_layers import Reading
    from .constant_products import Product

Value: TypeAlias = npt.NDArray[np.float64]
"""Of the rank of its tensor, with size 1 along the axes that it does not vary along; NaN where nothing is known."""

Rule = Callable[["KnownValues", Call], Any]
"""Operation -> the value of its result, a tuple of them for several results, None where nothing is known."""
RULES: dict[str, Rule] = {}


def rule(*keys: str) -> Callable[[Rule], Rule]:
    """Register how to interpret operations over values; a second rule for a key is refused."""

    def register(function: Rule) -> Rule:
        for key in keys:
            if key in RULES:
                raise InternalError(f"operation {key!r} has two constant rules")
            RULES[key] = function
        return function

    return register


class KnownValues:
    """What rules read from. One per interpretation."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.now: dict[fx.Node, Any] = {}
        """What is known of each tensor at this point of the run: in-place operations change it."""
        self.readings: dict[fx.Node, Reading] = {}
        self.products: dict[fx.Node, list[Product]] = {}

    def input(self, call: Call) -> Value | None:
        """Return the value of the call's first operand."""
        return self.of(call.input)

    def of(self, argument: Any) -> Value | None:
        """Return the value of a tensor argument."""
        found = self.now.get(argument) if isinstance(argument, fx.Node) else None
        return found if isinstance(found, np.ndarray) else None

    def channels(self, call: Call, axis: int) -> Value:
        """Return what is known of the input along one axis."""
        return vector(self.input(call), shape_of(call.input), axis)

    def tensor(self, parameter: Any) -> Value | None:
        """Return a parameter of a call, of its full shape, if all of it is known."""
        if isinstance(parameter, Tensor):
            return as_value(parameter) if parameter.is_floating_point() else None
        found = self.of(parameter) if is_tensor(parameter) else None
        return None if found is None or np.isnan(found).any() else np.broadcast_to(found, shape_of(parameter))


def as_value(tensor: Tensor) -> Value:
    """Return all that a tensor holds."""
    return tensor.detach().cpu().to(torch.float64).numpy()


def vector(value: Value | None, shape: tuple[int, ...], axis: int) -> Value:
    """Return a value along one axis, NaN where it varies along another."""
    if value is None:
        return np.full(shape[axis], np.nan)
    along = uniform(value, [a for a in range(value.ndim) if a != axis]).ravel()
    return np.ascontiguousarray(np.broadcast_to(along, (shape[axis],)))


def along(channels: Value, axis: int, rank: int) -> Value:
    """Return the value of a tensor that varies along one axis only."""
    return channels.reshape([-1 if a == axis else 1 for a in range(rank)])


def uniform(value: Value, axes: Iterable[int]) -> Value:
    """Return a value that does not vary along some axes (size 1 there): NaN where it did."""
    for axis in axes:
        if value.shape[axis] > 1:
            first = value.take([0], axis=axis)
            value = np.where((value == first).all(axis=axis, keepdims=True), first, np.nan)
    return value


def restricted(value: Any, labels: Any) -> Any:
    """Return what a value says per channel: uniform along axes without labels, NaN for infinities, None for nothing."""
    if isinstance(value, tuple):
        pairs = zip(value, labels, strict=True) if isinstance(labels, tuple) else ()
        return tuple(restricted(v, x) for v, x in pairs) or None
    if value is None or not isinstance(labels, ChannelLabels):
        return None
    labelled = {a for f in labels.factors for a in f.axes}
    found = uniform(value, [a for a in range(value.ndim) if a not in labelled])
    finite = np.isfinite(found)
    return np.where(finite, found, np.nan) if finite.any() else None


def in_evaluation(argument: Any) -> Any:
    """Return an argument of a call as it is in evaluation mode."""
    return False if isinstance(argument, fx.Node) and argument.target == TRAINING else argument
