"""What class values of the graph are of, for code that asks: ``isinstance(x, torch.Tensor)``.

To the model's code, and to libraries that it calls, a value of the graph is what it stands for. To torch's own code and
to ours it is a proxy; to torch's C++ code above all, which would take it for a tensor in memory if ``__class__`` said
so.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

_isinstance: Final = isinstance
"""Python's own, while another stands in its place."""
_TRACING: Final = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))
"""Code that knows proxies."""
_OWN_MODELS: Final = tuple(f"{_TRACING[1]}{folder}{os.sep}" for folder in ("examples", "zoo"))


class ClassedProxy(fx.Proxy):
    """A value of the graph that says what it stands for."""

    @abstractmethod
    def kind(self) -> type:
        """Return the class of the value."""


def is_instance(of: Any, kinds: Any, asking: FrameType) -> bool:
    """Answer what code asks by ``isinstance``.

    Args:
        of: Anything.
        kinds: What it may be an instance of.
        asking: Whose code asks.
    """
    if _isinstance(of, kinds) or not _isinstance(of, ClassedProxy):
        return _isinstance(of, kinds)
    file = asking.f_code.co_filename
    knows = file.startswith(_TRACING) and not file.startswith(_OWN_MODELS)
    return not knows and issubclass(of.kind(), kinds)


class PlainProxy(ClassedProxy):
    """A value of which nothing is known but that inputs are tensors, and what layers return."""

    def kind(self) -> type:
        """Return what is certain.

        Raises:
            TraceError: It is not; a tracer that knows values has to answer.
        """
        root: Any = getattr(self.tracer, "root")  # noqa: B009, graphs without modules have none
        layer = root.get_submodule(str(self.node.target)) if self.node.op == "call_module" else None
        if self.node.op == "placeholder" or type(layer).__module__ in _ONE_TENSOR:
            return torch.Tensor
        raise TraceError("Python asks of what class a value is")


_ONE_TENSOR: Final = frozenset(kind.__module__ for kind in (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm))
"""Where layers come from that return one tensor each."""
