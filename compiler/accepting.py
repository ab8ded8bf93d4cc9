"""While a model is traced: values of the graph, where torch or Python insist on numbers and types.

    torch.zeros(b, 1, h, w)      ->   torch.zeros((b, 1, h, w))
    table.expand(b, 1, h, w)     ->   table.expand((b, 1, h, w))      where table is a tensor, no value of the graph
    len(x)                       ->   x.size(0)
    isinstance(x, torch.Tensor), torch.is_tensor(x)    ->   whether it stands for one; see kinds.py
    torch.finfo(x.dtype)         ->   that of what the dtype is now
    torch.zeros_like(x, requires_grad=self.training)   ->   torch.zeros_like(x)
    torch._check(x.max() < 2)    ->   nothing: values are not known, and a graph asserts nothing

torch lets a value of the graph stand inside a tuple of sizes and then leaves the call to the tracer; as an argument of
its own it takes it for nonsense. ``len`` refuses whatever is no number, whoever returns it.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
from typing import Any, Final

import torch
from torch import fx

from .kinds import ClassedProxy, is_instance
from .meta_values import Fact, ValuedProxy
from .tracers import TrainingFlag

_FUNCTIONS: Final = ("zeros", "ones", "empty", "rand", "randn")
_LIMITS: Final = ("finfo", "iinfo")
_LIKE: Final = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like")
_METHODS: Final = ("expand", "view", "reshape", "new_zeros", "new_ones", "new_empty")


@contextmanager
def accepting_values() -> Generator[None]:
    """Accept them for a while."""
    with _spread(), _asked(), _limits(), _unchecked():
        yield


@contextmanager
def _asked() -> Generator[None]:
    own, is_tensor, its_own = builtins.len, torch.is_tensor, builtins.isinstance

    def length(of: Any) -> Any:
        return of.length() if isinstance(of, ValuedProxy) else own(of)

    def stands_for_tensor(of: Any) -> bool:
        return issubclass(of.kind(), torch.Tensor) if isinstance(of, ClassedProxy) else is_tensor(of)

    def is_of(of: Any, kinds: Any) -> bool:
        return is_instance(of, kinds, sys._getframe(1))

    builtins.len, torch.is_tensor, builtins.isinstance = length, stands_for_tensor, is_of
    try:
        yield
    finally:
        builtins.len, torch.is_tensor, builtins.isinstance = own, is_tensor, its_own


@contextmanager
def _limits() -> Generator[None]:
    own = {name: getattr(torch, name) for name in _LIMITS}
    try:
        for name, kind in own.items():
            setattr(torch, name, lambda *of, kind=kind: kind(*(x.known if isinstance(x, Fact) else x for x in of)))
        yield
    finally:
        for name, kind in own.items():
            setattr(torch, name, kind)


@contextmanager
def _unchecked() -> Generator[None]:
    own = {name: getattr(torch, name) for name in dir(torch) if name.startswith("_check")}
    own = {name: function for name, function in own.items() if isinstance(function, FunctionType)}
    try:
        for name, function in own.items():
            setattr(torch, name, _ignoring_values(function))
        yield
    finally:
        for name, function in own.items():
            setattr(torch, name, function)


def _ignoring_values(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(given, fx.Proxy) for given in (*args, *kwargs.values())):
            function(*args, **kwargs)

    return called


@contextmanager
def _spread() -> Generator[None]:
    functions = {name: getattr(torch, name) for name in (*_FUNCTIONS, *_LIKE)}
    own = {name: vars(torch.Tensor)[name] for name in _METHODS if name in vars(torch.Tensor)}
    try:
        for name, function in functions.items():
            setattr(torch, name, _gathering(function, before=int(name in _LIKE)))
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
    """Return a function that puts its sizes into a tuple if one of them is a value of the graph, and asks no gradients.

    Args:
        function: Takes sizes, one by one or as one tuple.
        before: Arguments in front of the sizes.
    """

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        sizes = args[before:]
        if isinstance(kwargs.get("requires_grad"), TrainingFlag):
            del kwargs["requires_grad"]
        if any(isinstance(size, fx.Proxy) for size in sizes):
            return function(*args[:before], sizes, **kwargs)
        return function(*args, **kwargs)

    return called
