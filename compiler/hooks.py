"""Hooks behind layers: what they do belongs to the model, and is traced.

A hook that returns something, or changes something in place, is traced with the code of its layer, which then is a
layer without hooks. One that only watches, or keeps what it sees for later, has seen the value of the graph; the layer
stays as it is, with its hook, and whole, since nobody knows what the hook is for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from .mutation import is_in_place


def are_traced(layer: nn.Module) -> bool:
    """Tell whether the hooks of a layer are; those in front of it may make its weights, and stay with it."""
    opaque = isinstance(layer, (nn.MultiheadAttention, nn.RNNBase))
    return bool(layer._forward_hooks) and not layer._forward_pre_hooks and not opaque


def change(
    root: nn.Module, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: fx.Proxy
) -> bool:
    """Let hooks see the value of the graph that a layer has just returned; tell whether one of them changes it.

    Then the call of the layer is erased, with what the hooks have made of it. A hook that fails on the value wants
    numbers: it watches.
    """
    called, changed = result.node, False
    for number, hook in layer._forward_hooks.items():
        named = (dict(kwargs),) if number in layer._forward_hooks_with_kwargs else ()
        try:
            changed |= hook(layer, args, *named, result) is not None
        except Exception:
            continue
    nodes = list(called.graph.nodes)
    made = nodes[nodes.index(called) :]
    changed |= result.node is not called or any(is_in_place(node, root) for node in made[1:])
    for node in reversed(made if changed else ()):
        called.graph.erase_node(node)
    return changed


@contextmanager
def without(module: nn.Module) -> Generator[None]:
    """Call a module for its shapes only: hooks that have seen values of the graph see nothing else."""
    watched = [layer for layer in module.modules() if are_traced(layer)]
    kept = [layer._forward_hooks for layer in watched]
    try:
        for layer in watched:
            layer.__dict__["_forward_hooks"] = OrderedDict()
        yield
    finally:
        for layer, hooks in zip(watched, kept, strict=True):
            layer.__dict__["_forward_hooks"] = hooks
