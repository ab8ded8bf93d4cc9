"""Which layer a module is: a class that only adds construction to a layer of ``torch.nn`` is that layer.

``class Conv3DSimple(nn.Conv3d)`` with an ``__init__`` of its own runs as ``nn.Conv3d`` does; a class that overrides
anything of it that runs (``forward``, ``_conv_forward``) is something else.
"""

from __future__ import annotations

from functools import cache

from torch import nn

from .quantized import FAKE_QUANTIZED, QUANTIZED

_OWN = frozenset({*QUANTIZED.values(), *FAKE_QUANTIZED.values()})
_HARMLESS = frozenset({"__init__", "extra_repr", "__repr__", "__new__"})


@cache
def layer_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class of ``torch.nn`` (or of ours) that a class behaves like; the class itself if it is no such."""
    for base in kind.__mro__:
        if base in _OWN or base.__module__.split(".")[:2] == ["torch", "nn"]:
            return base if base is not nn.Module and _only_constructs(kind, base) else kind
    return kind


def _only_constructs(kind: type, base: type) -> bool:
    """Tell whether a class overrides nothing of its base that runs when it is called."""
    between = kind.__mro__[: kind.__mro__.index(base)]
    added = {name for cls in between for name in vars(cls) if callable(vars(cls)[name])}
    return all(name in _HARMLESS or not hasattr(base, name) for name in added)
