"""Constant rules of what acts on single elements: movement, activations, arithmetic, norms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx

from .constant_values import KnownValues, Value, along, in_evaluation, rule
from .labels import ChannelLabels, Factor
from .ops import Call
from .rules.movement import MOVES
from .rules.registry import RULES, RuleContext
from .shapes import concrete, is_tensor, shape_of, value_of

_SHARING: Final = MOVES | {"shape"}
_PICKED: Final = frozenset("roll flip index_select channel_shuffle".split())


@rule(*(_SHARING | _PICKED))
def _move(at: KnownValues, call: Call) -> Any:
    """Run the rule of the operation on the positions of its input: where each of them goes, its value goes."""
    if isinstance(several := at.now.get(call.input), tuple):
        index = concrete(call.params.get("index"))
        return several[index] if call.key == "getitem" and isinstance(index, int) else None
    value, after = at.input(call), value_of(call.node)
    if value is None:
        return None
    axes = tuple(a for a, size in enumerate(value.shape) if size > 1)
    if not axes:
        return _spread(value.item(), after) if call.key != "shape" else None
    context = RuleContext(at.program)
    context.node, context.atoms = call.node.name, value.size
    positions = np.arange(value.size).reshape([value.shape[a] for a in axes])
    context.env[call.input] = ChannelLabels((Factor(axes, positions),))
    return _placed(value.ravel(), RULES[call.key](context, call), after)


def _spread(number: float, after: Any) -> Any:
    if isinstance(after, tuple):
        return tuple(_spread(number, part) for part in after)
    return np.full((1,) * len(after.shape), number)


def _placed(flat: Value, labels: Any, after: Any) -> Any:
    """Return the value whose positions are labelled by positions of another."""
    if isinstance(labels, tuple) and isinstance(after, tuple):
        return tuple(_placed(flat, x, part) for x, part in zip(labels, after, strict=True))
    if not isinstance(labels, ChannelLabels) or len(labels.factors) != 1:
        return None  # the axis is gone, and with it which of the positions was picked
    (factor,) = labels.factors
    shape = [size if a in factor.axes else 1 for a, size in enumerate(after.shape)]
    known = factor.atoms < len(flat)
    return np.where(known, flat[np.where(known, factor.atoms, 0)], np.nan).reshape(shape)


def may_share_memory(call: Call) -> bool:
    """Tell whether the result of an operation may be, or be a view of, its first operand."""
    return call.key in _SHARING or (call.key == "unary" and _word(call) in _IDENTITIES)


_IDENTITIES: Final = frozenset(
    "identity positive dropout dropout1d dropout2d dropout3d alphadropout featurealphadropout featuredropout "
    "stochasticdepth".split()
)
_APPLIED: Final = frozenset(
    "relu relu6 leakyrelu elu selu celu gelu silu mish sigmoid logsigmoid tanh hardtanh hardswish hardsigmoid "
    "softshrink tanhshrink softplus softsign erf exp expm1 log log1p log2 sqrt rsqrt square abs neg sin cos tan sinh "
    "cosh asin acos atan clamp clampmin clampmax clip reciprocal logit".split()
)
"""Continuous functions, so that rounding cannot put a constant on another branch than the running model."""


def _word(call: Call) -> str:
    return call.title.lower().replace("_", "")


@rule("unary")
def _unary(at: KnownValues, call: Call) -> Value | None:
    """Apply the operation itself, as it is in evaluation mode."""
    value, word = at.input(call), _word(call)
    if value is None or word in _IDENTITIES:
        return value if value is None or not _drops(call, word) else None
    rest = [in_evaluation(a) for a in call.node.args[1:]]
    named = {k: in_evaluation(v) for k, v in call.node.kwargs.items() if k not in ("input", "inplace")}
    if word not in _APPLIED or any(isinstance(a, fx.Node) for a in (*rest, *named.values())):
        return None
    operand = torch.from_numpy(value.copy())
    if call.module is not None:
        layer = copy.copy(call.module)
        layer.training = False
        result = layer(operand)
    else:
        target: Any = call.node.target
        function = getattr(Tensor, target) if isinstance(target, str) else target
        result = function(operand, *rest, **named)
    return np.where(np.isnan(value), np.nan, result.numpy())


def _drops(call: Call, word: str) -> bool:
    """Tell whether a dropout is at work in evaluation mode too."""
    if call.module is not None or word in ("identity", "positive"):
        return False
    args, kwargs = call.node.args, call.node.kwargs
    place = 3 if word == "stochasticdepth" else 2
    default = args[place] if len(args) > place else True
    return bool(in_evaluation(kwargs.get("training", kwargs.get("train", default))))


_BINARY: Final[dict[str, Callable[[Any, Any], Any]]] = {
    name: function
    for names, function in (
        ("add iadd", np.add),
        ("sub isub subtract", np.subtract),
        ("mul imul multiply", np.multiply),
        ("div truediv itruediv divide truedivide", np.divide),
        ("pow ipow", np.power),
        ("maximum", np.maximum),
        ("minimum", np.minimum),
    )
    for name in names.split()
}


@rule("binary")
def _binary(at: KnownValues, call: Call) -> Value | None:
    """Two tensors or a tensor and a literal; a product with 0 is 0."""
    function = _BINARY.get(_word(call))
    if function is None or set(call.params) != {"input", "other"}:
        return None
    a, b = (_operand(at, call.params[name]) for name in ("input", "other"))
    if a is None or b is None:
        return None
    result = np.where(np.isnan(a) | np.isnan(b), np.nan, function(a, b))
    return np.where((a == 0) | (b == 0), 0.0, result) if function is np.multiply else result


def _operand(at: KnownValues, operand: Any) -> Value | None:
    if isinstance(operand, int | float):
        return np.array(float(operand))
    if not is_tensor(operand):
        return None  # a number that the graph computes follows the input's size
    found = at.now.get(operand)
    return found if found is not None else np.full((1,) * len(shape_of(operand)), np.nan)


@rule("batch_norm", "instance_norm")
def _norm(at: KnownValues, call: Call) -> Value | None:
    """S x + t with running statistics; the bias wherever the scale is 0, whatever the statistics are."""
    shape = shape_of(call.input)
    axis = len(shape) - int(call.title[-2]) - 1 if call.key == "instance_norm" and call.module else 1
    x = at.channels(call, axis)
    scale, shift = (
        np.full(len(x), default) if call[name] is None else at.tensor(call[name])
        for name, default in (("weight", 1.0), ("bias", 0.0))
    )
    if scale is None or shift is None:
        return None
    of_batch = call.module is None and bool(in_evaluation(call.params.get("training", False)))
    mean, var = at.tensor(call["running_mean"]), at.tensor(call["running_var"])
    if call.key == "instance_norm" or of_batch or mean is None or var is None:
        y = np.full(len(x), np.nan)
    else:
        y = (x - mean) / np.sqrt(var + call["eps"]) * scale + shift
    return along(np.where(scale == 0, shift, y), axis, len(shape))
