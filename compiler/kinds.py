"""What class values of the graph are of, for code that asks: ``isinstance(x, torch.Tensor)``.

Python asks an object's ``__class__`` where its type is not what is looked for. To the model's code, and to libraries
that it calls, a value of the graph is what it stands for. To torch's tracing and to ours it is a proxy.
"""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Any, Final

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

_TRACING: Final = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))
"""Code that knows proxies."""
_OWN_MODELS: Final = tuple(f"{_TRACING[1]}{folder}{os.sep}" for folder in ("examples", "zoo"))


class ClassedProxy(fx.Proxy):
    """A value of the graph that says what it stands for."""

    @abstractmethod
    def kind(self) -> type:
        """Return the class of the value."""

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What the model's code sees."""
        asking = sys._getframe(1).f_code.co_filename
        knows = asking.startswith(_TRACING) and not asking.startswith(_OWN_MODELS)
        return type(self) if knows else self.kind()


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
