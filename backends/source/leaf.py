"""How a ``torch.nn`` layer is written down: the constructor call that makes one just like it.

One mechanism for every layer: the signature of ``__init__`` says what there is to say, the attribute of the same name
says what the value is, and a layer built from those values is compared with the original before anything is printed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import nn

from ...compiler.errors import CompilerError
from ...compiler.layers import layer_class
from ...compiler.quantized import FAKE_QUANTIZED, QUANTIZED
from .syntax import MISSING

CHANNEL_ARGUMENTS = frozenset(
    {"in_channels", "out_channels", "num_features", "in_features", "out_features", "num_channels", "normalized_shape"}
    | {"num_parameters", "groups", "num_groups"}
)
"""Arguments that count channels."""

POSITIONAL = frozenset(
    {"in_channels", "out_channels", "num_features", "in_features", "out_features", "normalized_shape"}
    | {"num_embeddings", "embedding_dim", "embed_dim", "num_heads"}
)
"""Arguments that everybody knows by their place."""

_PER_DIMENSION = frozenset({"kernel_size", "stride", "padding", "dilation", "output_padding", "output_size"})
"""Arguments of which one number means the same number in every dimension."""

_HELPERS = frozenset({*QUANTIZED.values(), *FAKE_QUANTIZED.values()})

_PLAIN = frozenset(vars(nn.Module()))
_PADDING = "_reversed_padding_repeated_twice"


@dataclass(frozen=True)
class Argument:
    """One constructor argument of a layer."""

    name: str
    value: Any
    default: Any = MISSING


@dataclass(frozen=True)
class Constructor:
    """A call that makes a layer: the class, and all its arguments in the order of the signature."""

    kind: type[nn.Module]
    is_helper: bool
    """Whether it is one of ours, whose source goes along."""
    arguments: tuple[Argument, ...]


def stateless(module: nn.Module) -> bool:
    """Return whether a module owns no parameter and no buffer, so that a copy of it does as well."""
    return not any(True for _ in module.parameters()) and not any(True for _ in module.buffers())


def constructor(module: nn.Module, path: str) -> Constructor:
    """Return the constructor call of a layer.

    Args:
        module: A leaf of the graph.
        path: Its dotted name, for messages.

    Raises:
        CompilerError: No constructor call of a ``torch.nn`` class makes this layer.
    """
    kind = layer_class(type(module))
    is_helper = kind in _HELPERS
    if not is_helper and getattr(nn, kind.__name__, None) is not kind:
        raise _inexpressible(module, path, "its class is not one of torch.nn")
    found = _arguments(module, kind)
    problem = _difference(module, kind, found)
    if problem:
        raise _inexpressible(module, path, problem)
    return Constructor(kind, is_helper, found)


def _inexpressible(module: nn.Module, path: str, why: str) -> CompilerError:
    return CompilerError(
        f"layer {path} ({type(module).__name__}) cannot be written as a constructor call: {why}",
        where=path,
        hint="leave the python file out of what is emitted, or replace the layer by a torch.nn layer",
    )


@cache
def _signature(kind: type[nn.Module]) -> Mapping[str, inspect.Parameter]:
    base = next(k for k in kind.__mro__ if k not in _HELPERS)
    parameters = _explicit(base)
    if base is not kind:  # a helper takes what the class that it extends takes, and what it adds by keyword
        own = inspect.signature(kind.__init__).parameters
        parameters |= {name: p for name, p in own.items() if p.kind is p.KEYWORD_ONLY}
    parameters.pop("self", None)
    return parameters


def _explicit(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class, of its base where it hands all of them on (``nn.LSTM(*args, **kwargs)``)."""
    parameters = dict(inspect.signature(kind.__init__).parameters)
    if all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for name, p in parameters.items() if name != "self"):
        parameters = _explicit(kind.__mro__[1]) if kind.__mro__[1] is not nn.Module else parameters
        parameters.pop("mode", None)  # which of the recurrent layers it is
        if kind is nn.RNN:
            parameters["nonlinearity"] = inspect.Parameter(
                "nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh"
            )
    return parameters


def _arguments(module: nn.Module, kind: type[nn.Module]) -> tuple[Argument, ...]:
    found: list[Argument] = []
    for name, parameter in _signature(kind).items():
        default = MISSING if parameter.default is parameter.empty else _simplest(name, parameter.default)
        value = _value(module, name)
        if name.startswith("_") or name == "device" or value is MISSING or isinstance(value, nn.Module | torch.Tensor):
            continue
        value = _simplest(name, value)
        same_as = {"stride": "kernel_size", "kdim": "embed_dim", "vdim": "embed_dim"}.get(name)
        if default is None and same_as and value == _simplest(same_as, _value(module, same_as)):
            value = None
        found.append(Argument(name, value, default))
    return tuple(found)


def _value(module: nn.Module, name: str) -> Any:
    if name == "bias":
        if isinstance(module, nn.MultiheadAttention):
            return getattr(module, "in_proj_bias", None) is not None
        # Without a weight there is no bias to leave out.
        bias = getattr(module, "bias", None)
        if isinstance(bias, bool):
            return bias
        return bias is not None or not getattr(module, "elementwise_affine", True)
    if name == "add_bias_kv":
        return getattr(module, "bias_k", None) is not None
    if name == "dtype":
        own = {p.dtype for p in module.parameters() if p.is_floating_point()}
        return own.pop() if len(own) == 1 and own != {torch.float32} else None
    return getattr(module, name, MISSING)


def _simplest(name: str, value: Any) -> Any:
    if not isinstance(value, tuple | list):
        return value
    items = tuple(cast(Sequence[Any], value))
    if (name in _PER_DIMENSION and len(set(items)) == 1) or (name == "normalized_shape" and len(items) == 1):
        return items[0]
    return items


def _difference(module: nn.Module, kind: type[nn.Module], arguments: Sequence[Argument]) -> str | None:
    """Build the layer again and say how it differs from the original."""
    given = {a.name: a.value for a in arguments if a.default is MISSING or repr(a.value) != repr(a.default)}
    try:
        with torch.device("meta"):
            fresh = kind(**given)
    except Exception as error:  # any refusal at all means that the call is not the right one
        return f"{kind.__name__}({', '.join(f'{k}={v!r}' for k, v in given.items())}) fails with {error}"
    ours, theirs = ({k: (tuple(v.shape), v.dtype) for k, v in m.state_dict().items()} for m in (fresh, module))
    if ours != theirs:
        return f"its tensors are {_shapes(theirs)}, those of the call's are {_shapes(ours)}"
    for name, value in vars(fresh).items():
        if name in _PLAIN or name.startswith(("__", "_flat_weight")):  # the latter refer to the tensors
            continue
        if name == _PADDING and getattr(module, "padding_mode", "") == "zeros":  # padding itself is what counts then
            continue
        if isinstance(value, bool | int | float | str | tuple | list | None):
            original = getattr(module, name, MISSING)
            if repr(_simplest(name, original)) != repr(_simplest(name, value)):
                return f"its {name} is {original!r}, not {value!r}"
    return None


def _shapes(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, (shape, _) in tensors.items()) or "none"
