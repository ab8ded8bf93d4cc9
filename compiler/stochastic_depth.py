"""While a model is traced: what behaves as stochastic depth is our own ``stochastic_depth``, whoever wrote it.

    def drop_path(x, drop_prob=0.0, training=False, scale_by_keep=True):
        if drop_prob == 0.0 or not training:
            return x
        ...

Most code has a copy of this function, some as ``drop_connect``, or of a module that does the same. It branches on
``training``, so that a graph would hold one of the two modes. A function of such a name, and a module with nothing but
a rate, is replaced if trying it shows that it is stochastic depth: the identity in evaluation, and in training every
sample is dropped or divided by the probability to survive.

Huang et al., Deep Networks with Stochastic Depth, ECCV 2016; the name is from Larsson et al., FractalNet, ICLR 2017.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial, wraps
from types import FunctionType
from typing import Any, Final

import torch
from torch import nn

from . import functional

_NAMES: Final = ("drop_path", "drop_connect")
_SAMPLES: Final = 64
_MORE: Final = 64
"""Times, where a rate is so small or so large that nothing happens to a few samples, or the same to all."""


@contextmanager
def own_stochastic_depth(model: nn.Module) -> Generator[None]:
    """Replace functions, wherever the classes of a model's modules look them up, and modules, for a while."""
    spaces = {id(space): space for module in model.modules() if (space := _globals_of(type(module))) is not None}
    named = [(space, name, space.get(name)) for space in spaces.values() for name in _NAMES]
    found = [(space, name, function) for space, name, function in named if isinstance(function, FunctionType)]
    modules = [(module, rate) for module in model.modules() if (rate := _rate(module)) is not None]
    for space, name, function in found:
        if _drops_samples(function):
            space[name] = _replacement(function)
    for module, rate in modules:
        module.__dict__["forward"] = partial(_forward, module, rate)
    try:
        yield
    finally:
        for space, name, function in found:
            space[name] = function
        for module, _ in modules:
            del module.__dict__["forward"]


def _forward(module: nn.Module, rate: float, x: Any) -> Any:
    return functional.stochastic_depth(x, rate, "row", module.training)


def _rate(module: nn.Module) -> float | None:
    """Return the rate of a module that is stochastic depth, and nothing else."""
    rates = [value for value in vars(module).values() if type(value) is float and 0 < value < 1]
    state = [*module.parameters(), *module.buffers(), *module.children()]
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    if len(rates) != 1 or state or hooked or type(module).__module__.startswith("torch."):
        return None
    before = module.training

    def function(x: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
        module.__dict__["training"] = training and rate > 0
        return module(x)

    try:
        return rates[0] if _drops_samples(function, rates[0]) else None
    finally:
        module.__dict__["training"] = before


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


def _drops_samples(function: Callable[..., Any], rate: float = 0.25) -> bool:
    """Try it, on so many samples that some are dropped and some are not."""
    x = torch.rand(_SAMPLES, 2, 3, 1, dtype=torch.float64) + 1
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            same = [function(x, rate, False), function(x, 0.0, True)]
            dropped = function(x, rate, True)
            if bool((dropped == 0).any()) == bool((dropped == 0).all()):  # of a small rate, or of a large one
                dropped = torch.cat([function(x, rate, True) for _ in range(_MORE)])
                x = torch.cat([x] * _MORE)
    except Exception:  # it takes something else
        return False
    kept = (dropped != 0).flatten(1).all(1)
    wanted = torch.where(kept[:, None, None, None], x / (1 - rate), torch.zeros_like(x))
    some = 0 < int(kept.sum()) < len(x)
    return some and all(torch.equal(y, x[:_SAMPLES]) for y in same) and torch.allclose(dropped, wanted, rtol=1e-12)
