"""A program as text: one line per node, the same text for the same program on every run.

    conv1 = conv[conv1](x) -> float32[1, 64, 112, 112]  # Conv2d(3, 64, kernel_size=(7, 7), stride=(2, 2), ...)

Instruments compare, print and dump programs by this text. It names shapes and settings but holds no weights. Broken
programs print too: what a pass did is shown before the verifier objects.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import fx, nn

from .ops import UNKNOWN, normalise
from .program import Program, TensorSpec
from .shapes import value_of


def print_program(program: Program) -> str:
    """Return the text of a program, without a newline at its end."""
    inputs = ", ".join(f"{i.name}: {_spec(TensorSpec(i.shape, i.dtype))}" for i in program.inputs)
    return "\n".join([f"{program.name}({inputs})", *(f"  {_line(program, node)}" for node in program.graph.nodes)])


def fingerprint(program: Program, *, weights: bool = False) -> str:
    """Return a SHA-256 in hexadecimal of what a program computes.

    Args:
        program: What to take the fingerprint of.
        weights: Whether the values of its parameters and buffers count too, or their shapes only.
    """
    digest = hashlib.sha256(print_program(program).encode())
    for name, tensor in program.tensors():
        digest.update(f"\n{name} {_spec(TensorSpec(tuple(tensor.shape), tensor.dtype))}".encode())
        if weights:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _line(program: Program, node: fx.Node) -> str:
    if node.op == "output":
        return f"output({_text(node.args[0])})"
    value = f" -> {text}" if (text := _value(node)) else ""
    if node.op == "placeholder":
        return f"{node.name} = input{value}"
    if node.op == "get_attr":
        return f"{node.name} = attribute[{node.target}]{value}"
    arguments = [_text(a) for a in node.args] + [f"{key}={_text(a)}" for key, a in node.kwargs.items()]
    module = _module(program, node)
    comment = f"  # {_describe(module)}" if module is not None else ""
    return f"{node.name} = {_key(program, node)}[{_target(node)}]({', '.join(arguments)}){value}{comment}"


def _module(program: Program, node: fx.Node) -> nn.Module | None:
    if node.op != "call_module":
        return None
    try:
        return program.owner(str(node.target))
    except AttributeError:
        return None


def _describe(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"


def _key(program: Program, node: fx.Node) -> str:
    try:
        return normalise(program, node).key
    except (AttributeError, KeyError, IndexError):  # a broken node
        return UNKNOWN


def _target(node: fx.Node) -> str:
    if node.op == "call_function":
        return function_name(node.target)
    return f".{node.target}" if node.op == "call_method" else str(node.target)


def function_name(target: Any) -> str:
    """Return the name of a function for a person; never an address, which would differ from run to run."""
    module = str(getattr(target, "__module__", None) or "").removeprefix("_")
    name = str(getattr(target, "__name__", type(target).__name__))
    return f"{module}.{name}" if module and module != "builtins" else name


def _value(node: fx.Node) -> str:
    try:
        return _text(value_of(node))
    except KeyError:  # shapes were not inferred
        return ""


def _spec(spec: TensorSpec) -> str:
    return f"{str(spec.dtype).removeprefix('torch.')}{list(spec.shape)}"


def _text(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, TensorSpec):
        return _spec(value)
    if isinstance(value, slice):
        parts = [value.start, value.stop, *([value.step] if value.step is not None else [])]
        return ":".join("" if p is None else _text(p) for p in parts)
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_text(v)}' for key, v in value.items())}}}"
    if value is Ellipsis:
        return "..."
    return function_name(value) if callable(value) else repr(value)
