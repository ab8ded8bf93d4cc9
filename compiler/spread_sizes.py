"""While a model is traced: sizes that are values of the graph may be spread over arguments.

    torch.zeros(b, 1, h, w)      ->   torch.zeros((b, 1, h, w))
    table.expand(b, 1, h, w)     ->   table.expand((b, 1, h, w))      where table is a tensor, no value of the graph

torch lets a value of the graph stand inside a tuple of sizes and then leaves the call to the tracer; as an argument of
its own it takes it for nonsense.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

import torch
from torch import fx

_FUNCTIONS: Final = ("zeros", "ones", "empty", "rand", "randn")
_METHODS: Final = ("expand", "view", "reshape", "new_zeros", "new_ones", "new_empty")


@contextmanager
def spread_sizes() -> Generator[None]:
    """Accept spread sizes for a while."""
    functions = {name: getattr(torch, name) for name in _FUNCTIONS}
    own = {name: vars(torch.Tensor)[name] for name in _METHODS if name in vars(torch.Tensor)}
    try:
        for name, function in functions.items():
            setattr(torch, name, _gathering(function, before=0))
        for name in _METHODS:
            setattr(torch.Tensor, name, _gathering(getattr(torch.Tensor, name), before=1))
        yield
    finally:
        for name, function in functions.items():
            setattr(torch, name, function)
        for name in _METHODS:
            if name in own:
                setattr(torch.Tensor, name, own[name])
            else:
                delattr(torch.Tensor, name)


def _gathering(function: Callable[..., Any], *, before: int) -> Callable[..., Any]:
    """Return a function that puts its sizes into a tuple if one of them is a value of the graph.

    Args:
        function: Takes sizes, one by one or as one tuple.
        before: Arguments in front of the sizes.
    """

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        sizes = args[before:]
        if any(isinstance(size, fx.Proxy) for size in sizes):
            return function(*args[:before], sizes, **kwargs)
        return function(*args, **kwargs)

    return called
