"""Shape inference: the value of every node for the example inputs, and the only reader and writer of ``node.meta``.

Hot operations have a formula here; everything else runs once on meta tensors. Formulas exist for speed only: a test
holds each against the meta execution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeGuard, cast

import torch
from torch import fx

from . import hooks
from .devices import call_on_meta
from .errors import CaptureError
from .ops import Call, normalise
from .program import Program, TensorSpec

_VALUE: Final = "secateur_value"


def value_of(node: fx.Node) -> Any:
    """Return the node's value: TensorSpec for tensors, plain values for ints and shapes, tuples and dicts of those."""
    return node.meta[_VALUE]


def set_value(node: fx.Node, value: Any) -> None:
    """Record the value of a node made by a rewrite."""
    node.meta[_VALUE] = value


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a tensor node."""
    return value_of(node).shape


def is_tensor(argument: Any) -> TypeGuard[fx.Node]:
    """Tell whether an argument is a node that computes one tensor."""
    return isinstance(argument, fx.Node) and isinstance(argument.meta.get(_VALUE), TensorSpec)


def concrete(argument: Any) -> Any:
    """Replace every node inside an argument by its value for the example inputs."""
    if isinstance(argument, fx.Node):
        return value_of(argument)
    if isinstance(argument, tuple):
        return tuple(concrete(a) for a in argument)
    if isinstance(argument, list):
        return [concrete(a) for a in argument]
    if isinstance(argument, dict):
        return {k: concrete(v) for k, v in argument.items()}
    if isinstance(argument, slice):
        return slice(concrete(argument.start), concrete(argument.stop), concrete(argument.step))
    return argument


def infer(program: Program) -> None:
    """Record the value of every node.

    Raises:
        CaptureError: An operation does not accept the shapes that reach it.
    """
    remaining = iter(program.inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = next(remaining)
            node.meta[_VALUE] = TensorSpec(spec.shape, spec.dtype)
        else:
            infer_node(program, node)


def with_another_batch(program: Program) -> dict[fx.Node, Any]:
    """Return every node's value for a batch of one more; for the same batch where the program takes no other."""
    copies: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, copies))
    inputs = tuple(replace(i, shape=(i.shape[0] + 1, *i.shape[1:]) if i.shape else ()) for i in program.inputs)
    try:
        infer(Program(graph, program.root, inputs, program.name))
    except CaptureError:
        return {node: value_of(node) for node in copies}
    return {node: value_of(copy) for node, copy in copies.items()}


def infer_node(program: Program, node: fx.Node, call: Call | None = None) -> None:
    """Record the value of one node whose inputs have theirs."""
    if node.op == "output":
        node.meta[_VALUE] = concrete(node.args[0])
        return
    if node.op == "get_attr":
        value = program.attribute(str(node.target))
        node.meta[_VALUE] = TensorSpec(tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value
        return
    call = call or normalise(program, node)
    formula = _FORMULAS.get(call.key)
    result = formula(call) if formula is not None else None
    node.meta[_VALUE] = result if result is not None else _execute(program, node)


def _spec(argument: Any) -> TensorSpec | None:
    value = argument.meta.get(_VALUE) if isinstance(argument, fx.Node) else None
    return value if isinstance(value, TensorSpec) else None


def _same(call: Call) -> TensorSpec | None:
    x = _spec(call.input)
    if x is None or call.title in _RETYPING or (call.key == "unary" and not x.dtype.is_floating_point):
        return None
    return None if call.key == "unary" and _broadcasts(call, x) else x


def _broadcasts(call: Call, x: TensorSpec) -> bool:
    """Tell whether tensors that a signature does not name (bounds, masks, factors) may spread the result."""
    given = map(_spec, (*call.node.args, *call.node.kwargs.values()))
    return any(other is not None and other.shape != x.shape for other in given)


_RETYPING: Final = frozenset(
    "to float double half bfloat16 type_as zeros_like ones_like empty_like rand_like randn_like full_like "
    "logical_not isnan isinf quantize dequantize".split()
)


def _windowed(call: Call, x: TensorSpec, channels: int | None) -> TensorSpec | None:
    """Shape of a sliding-window operation: floor((size + 2 p - d (k - 1) - 1) / s) + 1 along each spatial axis."""
    if channels is not None:
        kernel: Sequence[int] = getattr(call.module, "kernel_size", ())
        n = len(kernel)
    else:
        n = _spatial_rank(call)
        kernel = _tuple(call["kernel_size"], n)
    if not n or len(x.shape) != n + 2 or isinstance(call["padding"], str) or call.params.get("ceil_mode"):
        return None
    stride = call["stride"] if call["stride"] not in (None, ()) else kernel
    padding, dilation = _tuple(call["padding"], n), _tuple(call.params.get("dilation", 1), n)
    spatial = tuple(
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(x.shape[2:], kernel, _tuple(stride, n), padding, dilation, strict=True)
    )
    if min(spatial) <= 0:
        return None  # let the real operation complain
    return TensorSpec((x.shape[0], x.shape[1] if channels is None else channels, *spatial), x.dtype)


def _number(call: Call, attribute: str) -> int:
    return int(getattr(call.module, attribute))


def _spatial_rank(call: Call) -> int:
    return next((int(c) for c in reversed(call.title) if c.isdigit()), 0)


def _tuple(value: Any, n: int) -> tuple[Any, ...]:
    value = concrete(value)
    return (value,) * n if isinstance(value, int) else tuple(value)


def _conv(call: Call) -> TensorSpec | None:
    x = _spec(call.input)
    if x is None or call.module is None or len(x.shape) < 3 or x.shape[1] != call.module.in_channels:
        return None
    return _windowed(call, x, _number(call, "out_channels"))


def _pool(call: Call) -> TensorSpec | None:
    x = _spec(call.input)
    return None if x is None or call.params.get("return_indices") else _windowed(call, x, None)


def _adaptive(call: Call) -> TensorSpec | None:
    x, n = _spec(call.input), _spatial_rank(call)
    if x is None or call.params.get("return_indices") or len(x.shape) != n + 2:
        return None
    target = _tuple(call["output_size"], n)
    return TensorSpec(
        (*x.shape[:2], *(s if t is None else t for s, t in zip(x.shape[2:], target, strict=True))), x.dtype
    )


def _interpolate(call: Call) -> TensorSpec | None:
    x = _spec(call.input)
    size, scale = concrete(call["size"]), concrete(call["scale_factor"])
    if x is None or len(x.shape) < 3 or (size is None) == (scale is None):
        return None
    n = len(x.shape) - 2
    if size is not None:
        spatial = (size,) * n if isinstance(size, int) else tuple(size)
    else:
        scales = (scale,) * n if isinstance(scale, int | float) else tuple(scale)
        spatial = tuple(math.floor(s * f) for s, f in zip(x.shape[2:], scales, strict=True))
    if len(spatial) != n or min(spatial) <= 0:
        return None
    return TensorSpec((*x.shape[:2], *spatial), x.dtype)


def _norm(call: Call) -> TensorSpec | None:
    x = _spec(call.input)
    if call.module is None or x is None or x.shape[1:2] != (call.module.num_features,):
        return None
    return x


def _linear(call: Call) -> TensorSpec | None:
    x = _spec(call.input)
    if call.module is None or x is None or x.shape[-1] != call.module.in_features:
        return None
    return TensorSpec((*x.shape[:-1], _number(call, "out_features")), x.dtype)


def _binary(call: Call) -> TensorSpec | None:
    x, y = _spec(call.input), _spec(call["other"])
    if x is None or y is None or x.dtype != y.dtype or call.title in _COMPARING:
        return None
    try:
        if x.shape == y.shape and not _broadcasts(call, x):
            return x
        given = [spec.shape for spec in map(_spec, (*call.node.args, *call.node.kwargs.values())) if spec is not None]
        return TensorSpec(tuple(torch.broadcast_shapes(*given)), x.dtype)
    except RuntimeError:
        return None


_COMPARING: Final = frozenset("eq ne lt le gt ge logical_and logical_or logical_xor".split())


def _cat(call: Call) -> TensorSpec | None:
    parts = [_spec(t) for t in call["tensors"]] if isinstance(call["tensors"], (list, tuple)) else [None]
    first = parts[0] if parts else None
    if first is None or any(p is None or p.dtype != first.dtype for p in parts) or not isinstance(call["dim"], int):
        return None
    dim = call["dim"] % len(first.shape)
    shapes = [p.shape for p in parts if p is not None]
    if len({(*s[:dim], *s[dim + 1 :]) for s in shapes}) != 1:
        return None
    return TensorSpec((*first.shape[:dim], sum(s[dim] for s in shapes), *first.shape[dim + 1 :]), first.dtype)


def _shape(call: Call) -> Any:
    x = _spec(call.input)
    if isinstance(pair := concrete(call.input), tuple) and call.params.get("name") in ("values", "indices"):
        return pair[("values", "indices").index(call["name"])]
    return x.shape if x is not None and call.params.get("name") == "shape" else None


def _size(call: Call) -> Any:
    x = _spec(call.input)
    if x is None:
        return None
    return x.shape if call["dim"] is None else x.shape[concrete(call["dim"])]


def _getitem(call: Call) -> Any:
    value = value_of(call.input) if isinstance(call.input, fx.Node) else None
    return value[concrete(call["index"])] if isinstance(value, (tuple, list, dict)) else None


def _permute(call: Call) -> TensorSpec | None:
    x = _spec(call.input)
    return None if x is None else TensorSpec(tuple(x.shape[d] for d in concrete(call["dims"])), x.dtype)


def _flatten(call: Call) -> TensorSpec | None:
    x = _spec(call.input)
    if x is None or not x.shape:
        return None
    start, end = call["start_dim"] % len(x.shape), call["end_dim"] % len(x.shape)
    return TensorSpec((*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]), x.dtype)


_FORMULAS: Final[dict[str, Callable[[Call], Any]]] = {
    "unary": _same,
    "copy": _same,
    "softmax": _same,
    "layer_norm": _same,
    "rms_norm": _same,
    "group_norm": _same,
    "prelu": _same,
    "conv": _conv,
    "batch_norm": _norm,
    "linear": _linear,
    "max_pool": _pool,
    "avg_pool": _pool,
    "adaptive_pool": _adaptive,
    "interpolate": _interpolate,
    "binary": _binary,
    "cat": _cat,
    "shape": _shape,
    "size": _size,
    "getitem": _getitem,
    "permute": _permute,
    "flatten": _flatten,
}


def _to_meta(value: Any) -> Any:
    if isinstance(value, TensorSpec):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, (tuple, list)):
        return type(value)(_to_meta(v) for v in value) if type(value) in (tuple, list) else value
    if isinstance(value, dict):
        return {k: _to_meta(v) for k, v in value.items()}
    return value


def _from_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return TensorSpec(tuple(value.shape), value.dtype)
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, (tuple, list)):
        return tuple(_from_meta(v) for v in value)
    if isinstance(value, dict):
        return {k: _from_meta(v) for k, v in value.items()}
    return value


def _execute(program: Program, node: fx.Node) -> Any:
    """Run the node itself on meta tensors."""
    args = _to_meta(concrete(node.args))
    kwargs = _to_meta(concrete(node.kwargs))
    try:
        with torch.no_grad():
            if node.op == "call_module":
                module = program.owner(str(node.target))
                state = {k: v.to("meta") for k, v in [*module.named_parameters(), *module.named_buffers()]}
                with hooks.without(module):
                    result = torch.func.functional_call(module, state, args, kwargs)
            else:
                result = call_on_meta(cast(Any, node.target), args, kwargs)
    except Exception as error:
        shapes = ", ".join(str(a.shape) for a in concrete(node.args) if isinstance(a, TensorSpec))
        first = (str(error).splitlines() or [""])[0]
        raise CaptureError(
            f"{node.target} does not accept inputs of shape {shapes}: {first}",
            where=where(node),
            hint="check the input shape (--input) and that the model runs on it",
        ) from error
    return _from_meta(result)


def where(node: fx.Node) -> str:
    """Name the place of a node for a person: the module path it was traced in and its own name."""
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack else ""
    return f"{path or 'forward'} (node {node.name})"
