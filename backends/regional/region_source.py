"""Regions that run their part of the program, as text: a function per region, and what lets a submodule run it."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, cast

from ...compiler.errors import CompilerError
from ..source.names import Names
from .graph_code import GraphCode

SUPPORT: Final = '''
def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in tuples, lists and dictionaries, in order."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def run_graph(model: nn.Module, path: str, forward: Any) -> None:
    """Let a submodule run another forward; it stays an instance of its class."""
    module = model.get_submodule(path)
    own = type(module)
    members = {"forward": forward, "own_forward": own.forward}
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__}
    module.__class__ = type(own.__name__, (own,), {**members, **names})
'''

_FORWARD: Final = '''
{code}

def forward_{number}(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """{path}: its own code does not go along with what was done to its layers."""
    values = graph_{number}(self, *tensors_in((args, kwargs)))
    return {result}
'''


def functions(codes: Sequence[GraphCode], names: Names) -> list[str]:
    """Return the text of a function per region, called ``forward_0``, ``forward_1``, ...

    Raises:
        CompilerError: A region gives something that cannot be written down, or calls a function that cannot.
    """
    found: list[str] = []
    for number, code in enumerate(codes):
        path = code.path or "the model"
        result = _expression(code.gave.filled([_Value(i) for i in range(len(code.outputs))]), names, path)
        found.append(_FORWARD.format(code=_graph(code, number, names), number=number, path=path, result=result))
    return found


def _graph(code: GraphCode, number: int, names: Names) -> str:
    python = code.graph.python_code("self")
    text = re.sub(r"^def forward\(", f"def graph_{number}(", python.src.strip(), flags=re.MULTILINE)
    for name, value in python.globals.items():
        if not re.search(rf"\b{re.escape(name)}\b", text):
            continue
        if name in ("inf", "nan"):
            names.require(f"from math import {name}")
        elif name == "device":
            names.require("from torch import device")
        elif name != "torch":
            text = re.sub(rf"\b{re.escape(name)}\b", names.function(value, code.path), text)
    return re.sub(r"; *\w+(?: = \w+)* = None\b", "", text)  # fx frees what is not read any more


class _Value:
    """Stands for a tensor that the graph gives."""

    def __init__(self, place: int) -> None:
        self.place = place


def _expression(value: Any, names: Names, where: str) -> str:
    if isinstance(value, _Value):
        return f"values[{value.place}]"
    if isinstance(value, OrderedDict):
        names.require("from collections import OrderedDict")
        entries = cast("OrderedDict[Any, Any]", value).items()
        return f"OrderedDict([{', '.join(f'({k!r}, {_expression(v, names, where)})' for k, v in entries)}])"
    if type(value) is dict:
        entries = cast("dict[Any, Any]", value).items()
        return f"{{{', '.join(f'{k!r}: {_expression(v, names, where)}' for k, v in entries)}}}"
    if type(value) in (tuple, list):
        parts = [_expression(part, names, where) for part in cast("Sequence[Any]", value)]
        inside = ", ".join(parts)
        return f"[{inside}]" if type(value) is list else f"({inside},)" if len(parts) == 1 else f"({inside})"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    raise CompilerError(
        f"{where} gives a {type(value).__name__}, which cannot be written down",
        where=where,
        hint="in Python, secateur.prune_regions gives the pruned model itself",
    )
