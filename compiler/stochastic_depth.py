"""While a model is traced: ``drop_path``, the function that most code has a copy of, is our own ``stochastic_depth``.

    def drop_path(x, drop_prob=0.0, training=False, scale_by_keep=True):
        if drop_prob == 0.0 or not training:
            return x
        ...

It branches on ``training``, so that a graph would hold one of the two. A function of this name is replaced only if it
behaves as stochastic depth does: as the identity in evaluation, and in training every sample is dropped or divided by
the probability to survive.

Huang et al., Deep Networks with Stochastic Depth, ECCV 2016; the name is from Larsson et al., FractalNet, ICLR 2017.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
from typing import Any, Final

import torch
from torch import nn

from . import functional

_NAME: Final = "drop_path"
_SAMPLES: Final = 64


@contextmanager
def own_stochastic_depth(model: nn.Module) -> Generator[None]:
    """Replace the function for a while, wherever the classes of a model's modules look it up."""
    spaces = {id(space): space for module in model.modules() if (space := _globals_of(type(module))) is not None}
    found = [(space, space[_NAME]) for space in spaces.values() if isinstance(space.get(_NAME), FunctionType)]
    for space, function in found:
        if _drops_samples(function):
            space[_NAME] = _replacement(function)
    try:
        yield
    finally:
        for space, function in found:
            space[_NAME] = function


def _globals_of(kind: type[nn.Module]) -> dict[str, Any] | None:
    return getattr(kind.forward, "__globals__", None)


def _replacement(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        x, rate, training, *more = given.arguments.values()
        usual = [parameter.default for parameter in signature.parameters.values()][3:]
        if any(a is not b for a, b in zip(more, usual, strict=True)):
            return function(*args, **kwargs)
        return functional.stochastic_depth(x, rate, "row", training) if rate else x

    return called


def _drops_samples(function: Callable[..., Any]) -> bool:
    """Try it."""
    x = torch.rand(_SAMPLES, 2, 3, dtype=torch.float64) + 1
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            same = [function(x, 0.5, False), function(x, 0.0, True)]
            dropped = function(x, 0.25, True)
    except Exception:  # it takes something else
        return False
    kept = (dropped != 0).flatten(1).all(1)
    wanted = torch.where(kept[:, None, None], x / 0.75, torch.zeros_like(x))
    some = 0 < int(kept.sum()) < _SAMPLES
    return some and all(torch.equal(y, x) for y in same) and torch.allclose(dropped, wanted, rtol=1e-12)
