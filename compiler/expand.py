"""Opening composites: calls that are one node to the tracer and many operations to a channel.

Wrapped Python functions are run once more on values that know their sizes (:mod:`.sized`), so that what they do becomes
graph; ``nn.MultiheadAttention`` and some functions of torch (:mod:`.spelt`) are spelt out. Results are those of the
composite, in real arithmetic; parameters keep their names. A composite that cannot be opened stays a call, and keeps
its channels.

    attention   [q, k, v] = x W_in^T + b_in,  y = softmax(q k^T / sqrt(d) + mask) v W_out^T + b_out
"""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .called_layers import plain
from .functional import HELPERS
from .meta_values import Pair, mapped, two_sizes
from .ops import FUNCTIONS
from .program import TRAINING, Program, place, referenced_tree
from .shapes import infer, value_of
from .sized import SizedTracing
from .spelt import SPELT


def expand(program: Program) -> Program:
    """Return the program with its composites opened, as far as they can be.

    Args:
        program: May be changed.
    """
    for node in program.graph.nodes:
        if node.target is F.scaled_dot_product_attention and node.kwargs.get("scale") is None:
            query = node.args[0] if node.args else node.kwargs["query"]
            node.kwargs = {**node.kwargs, "scale": value_of(query).shape[-1] ** -0.5}  # what it is at full width
    if not any(_is_composite(program, node) for node in program.graph.nodes):
        return program
    opened = _Opening(program).run()
    infer(opened)
    return opened


def _is_composite(program: Program, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = program.owner(str(node.target))
        return type(module) is nn.MultiheadAttention and not (module._forward_hooks or module._forward_pre_hooks)
    return _is_spelt(node) or is_opaque(node)


def _is_spelt(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in SPELT and node.kwargs.get("out") is None


def is_opaque(node: fx.Node) -> bool:
    """Tell whether a node calls a Python function of which nothing is known, not even that it changes nothing."""
    if node.op != "call_function" or not isinstance(node.target, types.FunctionType):
        return False
    library = (node.target.__module__ or "").partition(".")[0]
    return node.target not in FUNCTIONS and node.target not in HELPERS and library != "torch"


class _Opening(SizedTracing):
    """Copies a graph, with composites run in place of their calls."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.root = referenced_tree(program.root, program.graph)
        self.graph = fx.Graph()
        self.graph._tracer_cls = fx.Tracer
        self.made: dict[fx.Node, Any] = {}
        """Old node -> what stands for it: a node, or what a composite returned."""
        self.pairs: dict[fx.Node, Pair] = {}
        self.block: dict[str, Any] = {}

    def run(self) -> Program:
        old = self.program
        remaining = iter(two_sizes([(i.shape, i.dtype) for i in old.inputs]))
        for node in old.graph.nodes:
            if node.op == "placeholder":
                new = self.graph.node_copy(node)
                self.pairs[new] = next(remaining)
                self.made[node] = new
            elif node.op == "output":
                self.graph.output(mapped(node.args[0], self._of)).meta = dict(node.meta)
            elif _is_composite(old, node) and self._open(node):
                continue
            else:
                self.made[node] = self._copy(node)
        return replace(old, graph=self.graph, root=referenced_tree(self.root, self.graph))

    def _value(self, made: Any) -> Any:
        if isinstance(made, fx.Node):
            return self.proxy(made)
        return tuple(self._value(part) for part in made) if isinstance(made, tuple) else made

    def _of(self, node: fx.Node) -> Any:
        return self.made[node]

    def _copy(self, node: fx.Node) -> Any:
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and not isinstance(self.made[source], fx.Node):
            picked = self._picked(node, self.made[source])
            if picked is not None:
                return picked[0]
        new = self.graph.create_node(
            node.op,
            node.target,
            fx.map_arg(node.args, self._of),
            fx.map_arg(node.kwargs, self._of),
            node.name,
            node.type,
        )
        new.meta = dict(node.meta)
        self.pairs[new] = self.computed(new)
        return new

    @staticmethod
    def _picked(node: fx.Node, parts: Any) -> tuple[Any] | None:
        """Return the part that a node picks from what a composite returned."""
        index = node.args[1] if node.op == "call_function" and len(node.args) == 2 else None
        name = getattr(node.target, "__name__", "")
        return (parts[index],) if name == "getitem" and isinstance(parts, tuple) and isinstance(index, int) else None

    def _open(self, node: fx.Node) -> bool:
        """Run a composite; whether that went well."""
        self.block = {k: v for k, v in node.meta.items() if k == "nn_module_stack"}
        last = next(iter(reversed(self.graph.nodes)), None)
        given: dict[fx.Node, Any] = {n: self._value(self.made[n]) for n in node.all_input_nodes}
        args, kwargs = mapped((node.args, dict(node.kwargs)), given.__getitem__)
        try:
            if node.op == "call_module":
                result = self._attention(str(node.target), *args, **kwargs)
            else:
                function: Any = node.target
                if _is_spelt(node):
                    function = SPELT[function]
                    kwargs.pop("out", None)
                result = function(*args, **kwargs)
        except Exception:  # whatever the function does that values of a graph cannot
            for new in reversed(list(self.graph.nodes)):
                if new is last:
                    break
                self.graph.erase_node(new)
            return False
        self.made |= {
            old: self._nodes(value) for old, value in given.items()
        }  # what it was given may have been changed
        self.made[node] = self._nodes(result)
        return True

    def _nodes(self, result: Any) -> Any:
        if isinstance(result, fx.Proxy):
            return result.node
        if isinstance(result, torch.Tensor):
            return self.create_arg(result)
        return tuple(self._nodes(part) for part in result) if type(result) in (tuple, list) else result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta |= self.block
        return node

    def create_arg(self, a: Any) -> Any:
        """Keep constants that were computed on the way where a reader will look for them."""
        if isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter):
            name = self._constant_name()
            place(self.root, name, a, persistent=False)
            node = self.create_node("get_attr", name, (), {})
            self.pairs[node] = self.computed(node)
            return node
        return super().create_arg(a)

    def _constant_name(self) -> str:
        stack = self.block.get("nn_module_stack")
        path: str = next(reversed(stack.values()))[0] if stack else ""
        number = 0
        while _has(self.root, name := f"{path}.constant_{number}" if path else f"constant_{number}"):
            number += 1
        return name

    # Attention ---------------------------------------------------------------------------------------------------

    def _tensor(self, path: str) -> Any:
        return self.create_proxy("get_attr", path, (), {})

    def _attention(
        self,
        path: str,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Any:
        """Spell out ``nn.MultiheadAttention``: [N, L, E] (or [L, N, E]) -> the same, and no attention weights.

        Raises:
            NotImplementedError: It does something that this does not.
        """
        del need_weights, average_attn_weights  # whoever reads the weights finds none, and says so
        module = self.program.owner(path)
        assert isinstance(module, nn.MultiheadAttention)
        unusual = (key_padding_mask, attn_mask, module.bias_k, module.bias_v, module.q_proj_weight)
        if any(x is not None for x in unusual) or module.add_zero_attn or is_causal or query.dim() != 3:
            raise NotImplementedError
        heads, width = module.num_heads, module.head_dim
        weight = self._tensor(f"{path}.in_proj_weight")
        bias = self._tensor(f"{path}.in_proj_bias") if "in_proj_bias" in dict(module.named_parameters()) else None
        if query.node is key.node is value.node:
            parts = F.linear(query, weight, bias).chunk(3, -1)
        else:
            biases = bias.chunk(3) if bias is not None else (None, None, None)
            parts = tuple(
                F.linear(x, w, b) for x, w, b in zip((query, key, value), weight.chunk(3), biases, strict=True)
            )
        q, k, v = (x.reshape(x.size(0), x.size(1), heads, width) for x in parts)
        order = (0, 2, 1, 3) if module.batch_first else (1, 2, 0, 3)
        q, k, v = (x.permute(*order) for x in (q, k, v))
        scale = width**-0.5
        if module.dropout == 0.0:
            y = F.scaled_dot_product_attention(q, k, v, scale=scale)
        else:
            weights = torch.softmax((q * scale) @ k.transpose(-2, -1), -1)
            y = F.dropout(weights, module.dropout, self._tensor(TRAINING)) @ v
        back = (0, 2, 1, 3) if module.batch_first else (2, 0, 1, 3)
        y = y.permute(*back)
        y = y.reshape(y.size(0), y.size(1), heads * width)
        place(self.root, f"{path}.out_proj", plain(module.out_proj, nn.Linear))
        return self.create_proxy("call_module", f"{path}.out_proj", (y,), {}), None


def _has(root: nn.Module, path: str) -> bool:
    *containers, name = path.split(".")
    for container in containers:
        child = root._modules.get(container)
        if child is None:
            return False
        root = child
    return hasattr(root, name)
