"""Calls of layers, where a function was given all that a layer holds.

    linear(x, a.weight, a.bias)                                             ->    a(x)
    conv2d(pad(x), a.weight, a.bias, stride)                                ->    a(pad(x))
    batch_norm(x, b.running_mean, ..., b.bias, self.training, m, eps)       ->    b(x)

That is what is left of classes that add to a layer: padding, casts, an activation. As layers, norms fold and count the
batches that they have seen. Modules without tensors that lived in them move beside them: ``b.act`` is ``b_act``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .program import TRAINING, Program, place, submodule

_CONVS: Final[Mapping[Any, type[nn.Module]]] = {
    torch.conv1d: nn.Conv1d,
    torch.conv2d: nn.Conv2d,
    torch.conv3d: nn.Conv3d,
}
_NUMBERS: Final = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TENSORS: Final = ("running_mean", "running_var", "weight", "bias")


def call_layers(program: Program, model: nn.Module) -> None:
    """Replace functions by layers, in place.

    Args:
        program: Its tree holds what the graph names.
        model: What it was traced from.
    """
    for node in list(program.graph.nodes):
        if node.target is F.linear:
            _weighted(program, model, node, nn.Linear)
        elif node.op == "call_function" and node.target in _CONVS:
            _weighted(program, model, node, _CONVS[node.target])
        elif node.target is F.batch_norm:
            _norm(program, model, node)


def plain(layer: nn.Module, kind: type[nn.Module]) -> Any:
    """Return a layer of another class with the same tensors and numbers, no modules below it, and no hooks.

    Hooks have run while the layer's own code was traced.
    """
    made = object.__new__(kind)
    own = {name: value for name, value in vars(nn.Module()).items() if name == "_modules" or "hooks" in name}
    made.__dict__.update(layer.__dict__ | own)
    return made


def _weighted(program: Program, model: nn.Module, node: fx.Node, kind: type[nn.Module]) -> None:
    given = _bound(node, ("input", "weight", "bias", *_NUMBERS))
    layer, path = _owner(model, given["weight"])
    if layer is None or not isinstance(layer, kind) or _is_layer(program, path):
        return
    if any(_tensor(program, given[name]) is not getattr(layer, name) for name in ("weight", "bias")):
        return
    made = plain(layer, kind)
    if isinstance(layer, _ConvNd):
        numbers = _numbers(given, layer.weight.ndim - 2)
        if numbers is None:
            return
        padding = [size for size in reversed(numbers["padding"]) for _ in range(2)]
        made.__dict__.update(numbers, padding_mode="zeros", _reversed_padding_repeated_twice=padding)
    if _empty_below(program, path):
        place(program.root, path, made)
        _call(program, node, path, given["input"])


def _numbers(given: Mapping[str, Any], rank: int) -> dict[str, Any] | None:
    """Return the numbers of a convolution, one per axis; ``None`` if they are anything but numbers."""
    found: dict[str, Any] = {}
    for name, default in _NUMBERS.items():
        value: Any = default if given[name] is None else given[name]
        if isinstance(value, int):
            value = value if name == "groups" else (value,) * rank
        elif not isinstance(value, (tuple, list)) or len(value) != rank or not all(type(v) is int for v in value):
            return None
        found[name] = value if name == "groups" else tuple(value)
    return found


def _norm(program: Program, model: nn.Module, node: fx.Node) -> None:
    bound = inspect.signature(F.batch_norm).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    given = bound.arguments
    layer, path = _owner(model, given["running_mean"])
    kind = next((norm for norm in _NORMS if isinstance(layer, norm)), None)
    flag = given["training"]
    if not isinstance(layer, _BatchNorm) or kind is None or not isinstance(flag, fx.Node) or flag.target != TRAINING:
        return
    if any(_tensor(program, given[name]) is not getattr(layer, name) for name in _TENSORS):
        return
    if (given["momentum"], given["eps"]) != (layer.momentum, layer.eps) or not _empty_below(program, path):
        return
    place(program.root, path, plain(layer, kind))
    _call(program, node, path, given["input"])


def _bound(node: fx.Node, names: Sequence[str]) -> dict[str, Any]:
    return {**dict.fromkeys(names), **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _owner(model: nn.Module, tensor: Any) -> tuple[nn.Module | None, str]:
    """Return the module of the model that a tensor of the graph belongs to, and its path."""
    path = str(tensor.target).rpartition(".")[0] if isinstance(tensor, fx.Node) and tensor.op == "get_attr" else ""
    try:
        return (submodule(model, path) if path else None), path
    except AttributeError:
        return None, path


def _tensor(program: Program, argument: Any) -> Any:
    held = isinstance(argument, fx.Node) and argument.op == "get_attr"
    return program.attribute(str(argument.target)) if held else argument


def _empty_below(program: Program, path: str) -> bool:
    """Move the modules below a path beside it; false, and nothing done, if there is state or a name in the way."""
    below = {
        str(n.target) for n in program.graph.nodes if n.op == "call_module" and str(n.target).startswith(f"{path}.")
    }
    moved = {old: _beside(path, old) for old in below}
    if any([*program.owner(old).parameters(), *program.owner(old).buffers()] for old in below):
        return False
    if any(_exists(program.root, new) for new in moved.values()):
        return False
    for old, new in moved.items():
        place(program.root, new, program.owner(old))
    for node in program.graph.nodes:
        target = str(node.target)
        if node.op == "call_module" and target in moved:
            node.target = moved[target]
        stack = cast("dict[str, tuple[str, Any]] | None", node.meta.get("nn_module_stack"))
        if stack is not None:  # the norm itself is no block any more
            node.meta["nn_module_stack"] = {
                key: (_beside(path, where), kind) for key, (where, kind) in stack.items() if where != path
            }
    return True


def _beside(path: str, other: str) -> str:
    """Return where what lies below a path lies from now on; what lies elsewhere stays."""
    below = other.removeprefix(f"{path}.")
    return other if below == other else f"{path}_{below.replace('.', '_')}"


def _is_layer(program: Program, path: str) -> bool:
    """Tell whether a path has been made a layer already, by another call, maybe with other numbers."""
    return _exists(program.root, path) and type(submodule(program.root, path)) is not nn.Module


def _exists(root: nn.Module, path: str) -> bool:
    try:
        submodule(root, path)
    except AttributeError:
        return False
    return True


def _call(program: Program, node: fx.Node, path: str, x: fx.Node) -> None:
    with program.graph.inserting_before(node):
        call = program.graph.call_module(path, (x,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    program.graph.erase_node(node)
