"""What functions are called in an emitted file, which imports that takes, and helpers whose source goes along."""

from __future__ import annotations

import ast
import builtins
import inspect
import math
import operator
import sys
import textwrap
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional

from ...compiler.errors import CompilerError

_PACKAGE = __name__.partition(".")[0]

_NAMESPACES: tuple[tuple[str, Any], ...] = (
    ("F", functional),
    ("torch", torch),
    ("torch.linalg", torch.linalg),
    ("torch.special", torch.special),
    ("torch.fft", torch.fft),
    ("torch.Tensor", torch.Tensor),
    ("operator", operator),
    ("math", math),
    ("", builtins),
)

_IMPORTS = {
    "F": "import torch.nn.functional as F",
    "math": "import math",
    "operator": "import operator",
    "torch": "import torch",
    "nn": "from torch import nn",
}


class Names:
    """The names that one file uses: asked for one by one, then printed as imports and helper functions."""

    def __init__(self) -> None:
        self._imports: set[str] = set()
        self._helpers: dict[str, str] = {}

    def function(self, function: Callable[..., Any], where: str) -> str:
        """Return what a function is called in the file.

        Args:
            function: The target of a ``call_function`` node.
            where: The node's name, for messages.

        Raises:
            CompilerError: The function is neither torch's, nor the standard library's, nor one of our helpers.
        """
        if isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            return f"torch.ops.{function}"
        spelled = getattr(function, "__name__", "")
        for prefix, namespace in _NAMESPACES:
            public = spelled.removeprefix(f"{prefix.removeprefix('torch.')}_")  # linalg_vector_norm, in torch.linalg
            if public and getattr(namespace, public, None) is function:
                return self._use(f"{prefix}.{public}" if prefix else public)
        if (getattr(function, "__module__", None) or "").partition(".")[0] == _PACKAGE:
            self._copy(function)
            return spelled
        if isinstance(function, type) and issubclass(function, tuple) and hasattr(function, "_fields"):
            self.named_tuple(function)
            return spelled
        raise CompilerError(
            f"the function {getattr(function, '__module__', '?')}.{spelled or function!r} cannot be called from a file "
            "that needs only torch",
            where=where,
            hint="leave the python file out of what is emitted, or express the function in torch operations",
        )

    def helper(self, kind: type) -> str:
        """Return what one of our classes is called in the file; its source goes along."""
        self._copy(kind)
        return kind.__name__

    def named_tuple(self, kind: Any) -> None:
        """Ask for a named tuple's definition."""
        self.require("from collections import namedtuple")
        fields = ", ".join(f'"{field}"' for field in kind._fields)
        self.define(kind.__name__, f'{kind.__name__} = namedtuple("{kind.__name__}", [{fields}])')

    def _use(self, dotted: str) -> str:
        first = dotted.partition(".")[0]
        if first in _IMPORTS:
            self._imports.add(_IMPORTS[first])
        return dotted

    def require(self, statement: str) -> None:
        """Ask for an import statement."""
        self._imports.add(statement)

    def define(self, name: str, text: str) -> None:
        """Ask for a module-level definition."""
        self._helpers.setdefault(name, text)

    def _copy(self, function: Callable[..., Any]) -> None:
        """Take a helper's source along, and all that it refers to."""
        spelled = function.__name__
        if spelled in self._helpers:
            return
        text = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(text)
        self._helpers[spelled] = ""  # it may call itself
        known = vars(sys.modules[function.__module__])
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in known:
                self._take(node.id, known[node.id])
        # What it calls comes first.
        self._helpers.pop(spelled)
        self._helpers[spelled] = text.rstrip()

    def _take(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType):
            parent, _, last = value.__name__.rpartition(".")
            plain = value.__name__ if name == value.__name__ else f"{value.__name__} as {name}"
            self._imports.add(
                _IMPORTS.get(name, f"from {parent} import {last}" if last == name and parent else f"import {plain}")
            )
        elif (getattr(value, "__module__", None) or "").partition(".")[0] == _PACKAGE:
            self._copy(value)
        elif isinstance(value, bool | int | float | str | tuple):
            self.define(name, f"{name} = {value!r}")
        elif module := getattr(value, "__module__", None):
            self._imports.add(f"from {'torch' if getattr(torch, name, None) is value else module} import {name}")

    def imports(self) -> list[str]:
        """Return the import lines, the standard library's first."""
        lines = _merged(self._imports)
        torches = sorted((line for line in lines if " torch" in line), key=_order)
        standard = sorted((line for line in lines if line not in torches), key=_order)
        return [*standard, "", *torches] if standard else torches

    def taken(self) -> set[str]:
        """Return the names that no class of the file may have."""
        imported = {word for line in self._imports for word in line.partition("import ")[2].replace(",", " ").split()}
        return {*self._helpers, *imported, "Tensor", "Path"}

    def helpers(self) -> list[str]:
        """Return the definitions that go along, in an order in which they can be read."""
        return list(self._helpers.values())


def _merged(lines: Iterable[str]) -> list[str]:
    """Put the names that are imported from one module into one line."""
    whole = [line for line in lines if not line.startswith("from ")]
    names: dict[str, set[str]] = {}
    for line in lines:
        if line.startswith("from "):
            module, _, imported = line.removeprefix("from ").partition(" import ")
            names.setdefault(module, set()).update(name.strip() for name in imported.split(","))
    return [*whole, *(f"from {module} import {', '.join(sorted(found))}" for module, found in names.items())]


def _order(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line
