"""A program in an engine's own words for integers.

    quantize(x, s, z)                     ->  dialect.quantize
    dequantize(q, s, z)                   ->  dialect.dequantize
    QuantizedConv2d, QuantizedLinear, ..  ->  conv2d(x, dialect.weight(q, s), dialect.bias(b, s_x)), linear(..)
    adaptive_avg_pool2d(x, 1), mean(x, (2, 3))  ->  dialect.global_average_pool, where the dialect has one

The result is a module in eval mode that shares the program's tensors and nothing else; without integers it computes
the same as the program, and so it does with them, except that a dialect may round the bias to the accumulator's step
s_x s_w.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ...compiler import functional
from ...compiler.auxiliary import without_training
from ...compiler.errors import CompilerError
from ...compiler.ops import Call, normalise
from ...compiler.program import Program, place, referenced_tree
from ...compiler.quantized import QUANTIZED
from ...compiler.shapes import concrete, infer, is_tensor, shape_of

_CONVOLUTIONS: Final[dict[int, Callable[..., Tensor]]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
"""By the rank of the weight."""

_CLASSES: Final = tuple(QUANTIZED.values())

Rewrite = Callable[[Program], None]
"""Changes a program in place."""

_SAME_STEP: Final = frozenset({"reshape", "flatten", "permute", "transpose", "unsqueeze", "squeeze", "max_pool"})
"""Operations whose results are among their inputs, so that they stand on the same scale."""


class Site:
    """Where new nodes go: in front of a node of the lowered graph."""

    def __init__(self, graph: fx.Graph, root: nn.Module, node: fx.Node) -> None:
        self.graph, self.root, self.node = graph, root, node

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """Add a call."""
        with self.graph.inserting_before(self.node):
            return self.graph.call_function(function, args)

    def constant(self, path: str, value: Tensor) -> fx.Node:
        """Add a buffer, unless it is there, and a node that reads it."""
        place(self.root, path, value, persistent=False)
        return self.read(path)

    def read(self, path: str) -> fx.Node:
        """Add a node that reads a tensor."""
        with self.graph.inserting_before(self.node):
            return self.graph.create_node("get_attr", path)


class Dialect(Protocol):
    """An engine's words. Scales and zero points are plain numbers; ``dtype`` is that of the integers."""

    def quantize(self, site: Site, x: fx.Node, scale: float, zero_point: int, dtype: torch.dtype) -> fx.Node:
        """Real numbers to integers."""
        ...

    def dequantize(self, site: Site, q: fx.Node, scale: float, zero_point: int, dtype: torch.dtype) -> fx.Node:
        """Integers to real numbers."""
        ...

    def weight(self, site: Site, path: str, layer: nn.Module) -> fx.Node:
        """The real weight of the integer layer at ``path``: scale of shape [O], along axis 0."""
        ...

    def bias(self, site: Site, path: str, layer: nn.Module, input_scale: float | None) -> fx.Node:
        """The bias [O] of the integer layer at ``path``; ``input_scale`` is that of the layer's input, where known."""
        ...

    def number(self, site: Site, value: float) -> fx.Node | None:
        """A positive number that is added to integers and makes integers again; ``None`` to leave it as it is."""
        ...

    def global_average_pool(self, site: Site, x: fx.Node) -> fx.Node | None:
        """[N, C, H, W] -> [N, C, 1, 1]; ``None`` to leave the call as it is."""
        ...


def is_quantized(program: Program) -> bool:
    """Tell whether a program computes with integers."""
    return any(
        node.target in (functional.quantize, functional.dequantize)
        or (node.op == "call_module" and isinstance(program.owner(str(node.target)), _CLASSES))
        for node in program.graph.nodes
    )


def evaluation_copy(program: Program) -> fx.GraphModule:
    """Return the program as a module of its own, in eval mode; tensors are shared."""
    graph, root = _copy(without_training(program))
    return fx.GraphModule(root, graph, class_name=program.name).eval()


def lower(program: Program, dialect: Dialect, rewrite: Rewrite | None = None) -> fx.GraphModule:
    """Return a program in a dialect.

    Args:
        program: What to lower; it stays as it is.
        dialect: The engine's words.
        rewrite: What the engine wants to have changed first, in place; given a copy whose layers are its own.

    Raises:
        CompilerError: Integers of a kind that has no counterpart: names the node.
    """
    graph, root = _copy(without_training(program))
    copied = replace(program, graph=graph, root=root, notes=())
    if rewrite is not None:
        rewrite(copied)
    infer(copied)
    scales: dict[fx.Node, float] = {}
    for node in list(graph.nodes):
        if not node.op.startswith("call_"):
            continue
        site = Site(graph, root, node)
        new: fx.Node | None = None
        if node.op == "call_module" and isinstance(layer := copied.owner(str(node.target)), _CLASSES):
            new = _layer(site, copied, str(node.target), layer, dialect, scales)
        elif node.target is functional.quantize:
            x, scale, zero_point, dtype = _arguments(node, ("input", "scale", "zero_point", "dtype"))
            new = dialect.quantize(site, x, float(scale), int(zero_point), dtype)
        elif node.target is functional.dequantize:
            q, scale, zero_point = _arguments(node, ("input", "scale", "zero_point"))
            new = dialect.dequantize(site, q, float(scale), int(zero_point), _integer_type(node, q))
            scales[new] = float(scale)
        elif _adds_number(call := normalise(copied, node)):
            number = dialect.number(site, float(call["other"]))
            if number is not None:
                node.args = (call.input, number)
        elif _is_global_average(call):
            new = dialect.global_average_pool(site, call.input)
            if new is not None and len(shape_of(node)) == 2:
                new = site.call(torch.flatten, new, 1)
        if new is not None:
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    graph.lint()
    return fx.GraphModule(root, graph, class_name=program.name).eval()


def _copy(program: Program) -> tuple[fx.Graph, nn.Module]:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, copies))
    tree = referenced_tree(program.root, program.graph)
    shared: dict[int, Any] = {id(t): t for t in (*tree.parameters(), *tree.buffers())}
    return graph, copy.deepcopy(tree, shared).eval()


def _layer(
    site: Site, program: Program, path: str, layer: nn.Module, dialect: Dialect, scales: Mapping[fx.Node, float]
) -> fx.Node:
    (x,) = _arguments(site.node, ("input",))
    weight = dialect.weight(site, path, layer)
    bias = None if layer._parameters["bias"] is None else dialect.bias(site, path, layer, _scale_of(program, x, scales))
    if isinstance(layer, nn.Linear):
        return site.call(F.linear, x, weight, bias)
    settings: Any = layer
    if settings.padding_mode != "zeros":
        raise CompilerError(
            f"a quantized convolution with padding mode '{settings.padding_mode}' has no integer kernel", where=path
        )
    function = _CONVOLUTIONS[settings.weight.ndim]
    return site.call(function, x, weight, bias, settings.stride, settings.padding, settings.dilation, settings.groups)


def _arguments(node: fx.Node, names: Sequence[str]) -> list[Any]:
    return [node.args[i] if i < len(node.args) else node.kwargs[name] for i, name in enumerate(names)]


def _integer_type(node: fx.Node, q: Any) -> torch.dtype:
    dtype = getattr(concrete(q), "dtype", None)
    if dtype not in (torch.uint8, torch.int8):
        raise CompilerError(f"integers of type {dtype} have no counterpart in engines", where=node.name)
    return dtype


def _scale_of(program: Program, x: Any, scales: Mapping[fx.Node, float]) -> float | None:
    """Return the scale of the integers that a real tensor was made from; ``None`` where it was not."""
    while isinstance(x, fx.Node) and x not in scales:
        if not x.op.startswith("call_"):
            return None
        call = normalise(program, x)
        if call.key not in _SAME_STEP:
            return None
        x = call.input
    return scales.get(x)


def _adds_number(call: Call) -> bool:
    """Tell whether a call adds a positive literal between dequantize and quantize."""
    if call.key != "binary" or call.title != "add" or not isinstance(call["other"], float) or call["other"] <= 0:
        return False
    users = list(call.node.users)
    return isinstance(call.input, fx.Node) and bool(users) and all(u.target is functional.quantize for u in users)


def _is_global_average(call: Call) -> bool:
    if not is_tensor(call.params.get("input")) or len(shape_of(call.input)) != 4:
        return False
    if call.key == "adaptive_pool":
        size = call["output_size"]
        return "avg" in call.title.lower() and size in (1, (1, 1), [1, 1])
    if call.key == "reduce" and call.title == "mean" and call.params.get("dtype") is None:
        dims = call["dim"]
        return isinstance(dims, tuple | list) and sorted(d % 4 for d in dims if isinstance(d, int)) == [2, 3]
    return False
