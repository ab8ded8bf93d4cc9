"""What is rewritten before OpenVINO gets a quantized program: roundings that buy nothing are left out.

Where all that reads the integers of a tensor is computed in float anyway, they stand for it with their limits only:

    dequantize(quantize(x, s, z), s, z)  ->  clamp(x, s (q_min - z), s (q_max - z))      x of any shape
    readers: sigmoid, hardswish, products, means over space

The clamp is the saturation of the integers, so that what is lost is the rounding. OpenVINO attaches clamp, activation
and the next quantization to the convolution before them; given integers in between, it runs each of them as a pass of
its own over memory, which costs more than the integers save. For that it has to know activations; it finds x sigmoid(x)
itself, but not the hard swish as ``quantize`` writes it:

    x * dequantize(quantize(dequantize(q, s / 6, z) + 1/2, 1/255, 0))  ->  hardswish(x)      x = dequantize(q, s, z)
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import fx
from torch.nn import functional as F

from ...compiler.functional import dequantize, quantize
from ...compiler.ops import Call, normalise
from ...compiler.program import Program

_PURE: Final = frozenset({quantize, dequantize, torch.add})
"""What a rewrite may leave without readers; it is then removed."""
_Q: Final = (0, "input")
_SCALE: Final = (1, "scale")
_ZERO_POINT: Final = (2, "zero_point")
_DTYPE: Final = (3, "dtype")
_ROUNDING: Final = 1e-6
"""Relative: scales are float32."""


def rewrite(program: Program) -> None:
    """Rewrite a program in place; see :data:`.lower.Rewrite`."""
    _name_hard_swishes(program)
    _sweep(program)
    _drop_rounding(program)
    _sweep(program)
    program.graph.lint()


def _sweep(program: Program) -> None:
    for node in reversed(program.graph.nodes):
        if not node.users and node.target in _PURE:
            program.graph.erase_node(node)


def _name_hard_swishes(program: Program) -> None:
    for node in list(program.graph.nodes):
        product = _call(program, node)
        if product is None or not _is_product(product):
            continue
        for x, gate in ((product.input, product["other"]), (product["other"], product.input)):
            if _is(x, dequantize) and _is(gate, dequantize) and _is_hard_sigmoid(program, gate, x):
                with program.graph.inserting_before(node):
                    made = program.graph.call_function(F.hardswish, (x,))
                node.replace_all_uses_with(made)
                program.graph.erase_node(node)
                break


def _is_hard_sigmoid(program: Program, gate: fx.Node, x: fx.Node) -> bool:
    """Tell whether a tensor is hardsigmoid(x), for x = dequantize(q, s, z), in the words of ``quantize``."""
    q = _argument(gate, *_Q)
    total = _call(program, _argument(q, *_Q)) if _is(q, quantize) else None
    if total is None or total.title != "add" or total["other"] != 0.5 or not _spans_gates(q):
        return False
    sixth = total.input
    same = _is(sixth, dequantize) and all(_argument(sixth, *at) == _argument(x, *at) for at in (_Q, _ZERO_POINT))
    return same and _is_near(6 * _scale(sixth), _scale(x))


def _drop_rounding(program: Program) -> None:
    for q in _quantizations(program):
        readers = [reader for real in q.users for reader in real.users]
        if not readers or not all(_computes_in_float(program, reader) for reader in readers):
            continue
        x = _argument(q, *_Q)
        call = _call(program, x)
        if call is None or call.title.lower() != "sigmoid" or not _spans_gates(q):
            with program.graph.inserting_before(q):
                x = program.graph.call_function(torch.clamp, (x, *_limits(q)))
        for real in list(q.users):
            real.replace_all_uses_with(x)


def _computes_in_float(program: Program, reader: fx.Node) -> bool:
    """Tell whether a reader of dequantized integers gains nothing from their being integers."""
    call = _call(program, reader)
    if call is None:
        return False
    averages = (call.key == "adaptive_pool" and "avg" in call.title.lower()) or call.title == "mean"
    return averages or call.title.lower() in ("sigmoid", "hardswish") or _is_product(call)


def _quantizations(program: Program) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.target is quantize]


def _is(node: Any, function: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is function


def _is_product(call: Call) -> bool:
    return call.key == "binary" and call.title in ("mul", "multiply")


def _call(program: Program, node: Any) -> Call | None:
    return normalise(program, node) if isinstance(node, fx.Node) and node.op.startswith("call_") else None


def _argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs[name]


def _scale(node: fx.Node) -> float:
    return float(_argument(node, *_SCALE))


def _limits(q: fx.Node) -> tuple[float, float]:
    """Return the least and the greatest number that the integers of a quantization can stand for."""
    limits, zero_point = torch.iinfo(_argument(q, *_DTYPE)), int(_argument(q, *_ZERO_POINT))
    return _scale(q) * (limits.min - zero_point), _scale(q) * (limits.max - zero_point)


def _spans_gates(q: fx.Node) -> bool:
    """Tell whether integers reach from 0 to 1, and no further."""
    low, high = _limits(q)
    return low == 0 and _is_near(high, 1)


def _is_near(a: float, b: float) -> bool:
    return abs(a - b) <= _ROUNDING * abs(b)
