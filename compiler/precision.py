"""Computing in float64 throughout, whatever precision a model asks for on the way.

A model may convert what it computes (``x.float()`` in front of a softmax, ``softmax(x, dtype=torch.float32)``) or name
the type of what it makes (``torch.zeros(n, dtype=torch.float32)``). Two such programs are compared as what they say
about real numbers, so within :func:`float64_throughout` every real type that is asked for is float64.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NARROWING: Final = frozenset({"float", "half", "bfloat16"})


class _Wide(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and getattr(func, "__name__", "") in _NARROWING:
            return args[0].double()
        return func(*map(_widened, args), **{name: _widened(value) for name, value in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


@contextmanager
def float64_throughout() -> Generator[None]:
    """Let tensors that a model makes or converts be float64, where they hold real numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Wide():
            yield
    finally:
        torch.set_default_dtype(before)
