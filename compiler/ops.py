"""The one door through which every spelling of an operation enters.

``nn.ReLU``, ``F.relu``, ``torch.relu``, ``x.relu()`` and ``x.relu_()`` are one operation. Rules, shape inference, cost
and rewriting see a :class:`Call`: a key (``"relu"`` belongs to ``"unary"``), and parameters by name, wherever they were
written. A new spelling is one word in a table of :mod:`.words`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import fx, nn
from torch.nn import functional as F

from . import functional
from .layers import layer_class
from .program import Program
from .quantized import FAKE_QUANTIZED, QUANTIZED
from .words import ALIASES, ATTRIBUTES, NAMES_OF_CLASSES, PARAMETERS, WORDS

REQUIRED: Final = object()
"""Default of a parameter that has none."""

UNKNOWN: Final = "unknown"
"""Key of every operation that no table names."""


def _parse(text: str) -> tuple[tuple[str, Any], ...]:
    parameters: list[tuple[str, Any]] = []
    for word in text.split():
        name, equals, default = word.partition("=")
        parameters.append((name, eval(default, {}) if equals else REQUIRED))
    return tuple(parameters)


SIGNATURES: Final = {key: _parse(text) for key, text in PARAMETERS.items()}


def _tables() -> tuple[dict[Any, str], dict[str, str], dict[type, str]]:
    functions: dict[Any, str] = {}
    methods: dict[str, str] = {}
    spaces: Sequence[Any] = (torch, F, torch.special, functional, SimpleNamespace(getattr=getattr))
    for key, words in WORDS.items():
        for word in words.split():
            methods[word] = methods[word + "_"] = key
            for space in spaces:
                for name in (word, word + "_"):
                    if (target := getattr(space, name, None)) is not None:
                        functions[target] = key
            for name in (word, "i" + word, word.rstrip("_")):
                if (target := getattr(operator, name, None)) is not None:
                    functions[target] = key
    classes = {
        getattr(nn, word, None) or getattr(nn.modules.linear, word): key
        for key, words in NAMES_OF_CLASSES.items()
        for word in words.split()
        if hasattr(nn, word) or hasattr(nn.modules.linear, word)
    }
    for table in (QUANTIZED, FAKE_QUANTIZED):
        classes |= {ours: classes[kind] for kind, ours in table.items()}
    return functions, methods, classes


FUNCTIONS, METHODS, CLASSES = _tables()


@dataclass(slots=True)
class Call:
    """One node, normalised: what it does and its parameters by name.

    Tensor parameters are :class:`fx.Node` (functional spelling) or ``nn.Parameter``/buffer (module spelling, then
    ``owner`` is the module's path). Everything else is a plain value, which may still be a Node that computes an int.
    """

    key: str
    node: fx.Node
    params: dict[str, Any]
    module: nn.Module | None = None
    owner: str = ""

    @property
    def input(self) -> Any:
        """The first operand."""
        return self.params["input"]

    def __getitem__(self, name: str) -> Any:
        """Return a parameter by name."""
        return self.params[name]

    @property
    def title(self) -> str:
        """What a person calls this operation."""
        if self.module is not None:
            return type(self.module).__name__
        target = self.node.target
        return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def normalise(program: Program, node: fx.Node) -> Call:
    """Return the normalised view of a call node (``call_module``, ``call_function``, ``call_method``)."""
    if node.op == "call_module":
        return _module_call(program.owner(str(node.target)), node)
    key = METHODS.get(str(node.target)) if node.op == "call_method" else FUNCTIONS.get(node.target)
    if key is None:
        return Call(UNKNOWN, node, {})
    bound = _bind(SIGNATURES[key], node)
    return Call(key, node, bound) if bound is not None else Call(UNKNOWN, node, {})


def attribute_of(key: str, parameter: str) -> str:
    """Return the name of the module attribute that holds a parameter."""
    return ATTRIBUTES.get((key, parameter), parameter)


def _module_call(module: nn.Module, node: fx.Node) -> Call:
    path = str(node.target)
    key = CLASSES.get(layer_class(type(module)), UNKNOWN)
    # Hooks and parametrizations compute what the tables cannot see (weight_norm, spectral_norm).
    if key == UNKNOWN or module._forward_pre_hooks or module._forward_hooks or len(node.args) + len(node.kwargs) != 1:
        return Call(UNKNOWN, node, {}, module, path)
    params: dict[str, Any] = {"input": node.args[0] if node.args else next(iter(node.kwargs.values()))}
    attributes, parameters, buffers = module.__dict__, module._parameters, module._buffers
    for name, default in SIGNATURES[key][1:]:
        name_there = ATTRIBUTES.get((key, name), name)
        for space in (attributes, parameters, buffers):  # what getattr does, without its detour through __getattr__
            if name_there in space:
                params[name] = space[name_there]
                break
        else:
            params[name] = getattr(type(module), name_there, default)
    if key == "pad":
        kind = type(module).__name__
        params["mode"] = next(
            (m for m in ("reflect", "replicat", "circular") if kind.lower().startswith(m)), "constant"
        )
        params["pad"] = (
            list(params["pad"]) if not isinstance(params["pad"], int) else [params["pad"]] * 2 * int(kind[-2])
        )
    return Call(key, node, params, module, path)


def _bind(signature: tuple[tuple[str, Any], ...], node: fx.Node) -> dict[str, Any] | None:
    """Bind positions and keywords to names; ``None`` when they do not fit (an overload that the tables do not know)."""
    params: dict[str, Any] = {}
    args = node.args
    for position, (name, default) in enumerate(signature):
        if name[0] == "*":
            rest: Any = args[position:]
            if len(rest) == 1 and not isinstance(rest[0], int):
                rest = rest[0]
            params[name[1:]] = rest
            if position >= len(args):
                params[name[1:]] = REQUIRED
            args = args[:position]
        else:
            params[name] = args[position] if position < len(args) else default
    if len(args) > len(signature):
        extra_allowed = (
            signature[0][0] == "input" and len(signature) <= 2
        )  # unary and binary: alpha, negative_slope, ...
        if not extra_allowed:
            return None
    for keyword, value in node.kwargs.items():
        name = keyword if keyword in params else ALIASES.get(keyword, keyword)
        params[name if name in params else keyword] = value
    if any(value is REQUIRED for name, value in params.items() if name != "dims"):
        return None
    return params


def locate(node: fx.Node, key: str, name: str) -> tuple[str, int | str]:
    """Return where parameter ``name`` of a functional call stands: ("args" or "rest", position) or ("kwargs", key).

    "rest" means that every positional argument from there on belongs to it (``x.view(2, 3)``).
    """
    for position, (parameter, _) in enumerate(SIGNATURES[key]):
        if parameter.lstrip("*") == name and position < len(node.args):
            spread = parameter[0] == "*" and (len(node.args) > position + 1 or isinstance(node.args[position], int))
            return ("rest", position) if spread else ("args", position)
    for keyword in node.kwargs:
        if keyword == name or ALIASES.get(keyword) == name:
            return "kwargs", keyword
    return "kwargs", name


def set_parameter(node: fx.Node, key: str, name: str, value: Any) -> None:
    """Write parameter ``name`` of a functional call, keeping the call's own spelling."""
    where, at = locate(node, key, name)
    if where == "kwargs":
        node.kwargs = {**node.kwargs, str(at): value}
    elif where == "rest":
        node.args = (*node.args[: int(at)], *value)
    else:
        position = int(at)
        node.args = (*node.args[:position], value, *node.args[position + 1 :])


TargetFunction = Callable[..., Any]
