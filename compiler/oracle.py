"""The mask oracle: the original graph, run so that removed channels contribute nothing.

It knows nothing of labels, groups or slicing: it reads the plan (what was kept of every original tensor) and the
original program, and interprets that graph with

* the weights of every convolution and linear layer zeroed where they read a removed channel,
* what removed channels are made of zeroed too (rows of weights, biases, scales of norms), so that a product of two
  activations, which no weights read, sums up zeros for them,
* every normalisation over channels, and every mean, sum and the like, computed over the kept ones.

Everything runs in evaluation mode and, unless asked otherwise, in float64, one layer's weights converted at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx

from .interpreter import Interpreter
from .ops import Call, normalise
from .plan import Kept, Plan
from .program import TRAINING, Program
from .shapes import concrete, value_of


class MaskedOriginal(Interpreter):
    """Interpret ``program`` as its masked self under ``plan``, with other weights if ``state`` gives some."""

    def __init__(
        self,
        program: Program,
        plan: Plan,
        state: Mapping[str, Tensor] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(program)
        self.plan = plan
        self.state = state or {}
        self.device = device
        self.dtype = dtype

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Execute the graph on inputs of ``dtype``, which are on the device that was given, by default the CPU."""
        with self.device or nullcontext():  # whatever is made on the way is made there
            return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Execute one node."""
        if n.op == "get_attr":
            if n.target == TRAINING:
                return False
            value = self.program.attribute(str(n.target))
            return self._value(str(n.target), value) if isinstance(value, Tensor) else value
        if n.op not in ("call_module", "call_function", "call_method"):
            return super().run_node(n)
        call = normalise(self.program, n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        norm = self.plan.norms.get(n.name)
        if norm is not None and call.key in ("reduce", "variance", "norm"):
            args = (_of_kept(call, args[0], _flat(norm)), *args[1:])
        elif norm is not None:
            return self._masked_norm(call, args[0], norm)
        if n.op == "call_module":
            return self._module(call, args, kwargs)
        if call.key in ("conv", "conv_transpose", "linear"):
            args, kwargs = self._mask_functional(call, args, kwargs)
        target: Any = getattr(args[0], str(n.target)) if n.op == "call_method" else n.target
        return target(*(args[1:] if n.op == "call_method" else args), **kwargs)

    def _module(self, call: Call, args: Any, kwargs: Any) -> Any:
        path = str(call.node.target)
        module = self.program.owner(path)
        frozen = copy.deepcopy(module) if module._modules else copy.copy(module)
        frozen.eval()
        tensors = [*module.named_parameters(), *module.named_buffers()]
        state = {name: self._value(f"{path}.{name}", tensor) for name, tensor in tensors}
        if call.key in ("conv", "conv_transpose", "linear"):
            groups = call.params.get("groups", 1)
            if args and not args[0].isfinite().all():
                args = (self._read(call, args[0], groups), *args[1:])
            state["weight"] = self._masked_weight(call, f"{path}.weight", state["weight"], groups)
        return torch.func.functional_call(frozen, state, args, kwargs)

    def _mask_functional(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        source = self._parameter_behind(call["weight"])
        if source is None:
            return args, kwargs
        groups = concrete(call.params.get("groups", 1))

        def masked(weight: Tensor) -> Tensor:
            return self._masked_weight(call, str(source.target), weight, groups)

        if len(args) > 1:
            return (args[0], masked(args[1]), *args[2:]), kwargs
        return args, {**kwargs, "weight": masked(kwargs["weight"])}

    def _parameter_behind(self, weight: Any) -> fx.Node | None:
        """Return the parameter of the weight's own shape that a functional weight is computed from, if it is one."""
        found: set[fx.Node] = set()
        stack, seen = [weight], set[fx.Node]()
        while stack:
            node = stack.pop()
            if isinstance(node, fx.Node) and node not in seen:
                seen.add(node)
                stack += node.all_input_nodes
                if node.op == "get_attr" and value_of(node) == value_of(weight):
                    found.add(node)
        return found.pop() if len(found) == 1 else None

    def _masked_weight(self, call: Call, name: str, weight: Tensor, groups: int) -> Tensor:
        """Zero what reads removed channels: axis 1 of [O, I, ...], axis 0 of a transposed convolution's [I, O, ...]."""
        kept = self.plan.kept.get(name, {})
        consumer = 0 if call.key == "conv_transpose" else 1
        if consumer not in kept:
            return weight
        mask = torch.zeros_like(weight)
        indices: Any = kept[consumer]
        if indices and isinstance(indices[0], list):
            rows = weight.shape[0] // groups
            remaining = sorted({row // rows for row in _flat(kept.get(0, list(range(weight.shape[0]))))})
            for group, columns in zip(remaining, indices, strict=True):
                for column in columns:
                    mask[group * rows : (group + 1) * rows, column] = 1.0
        else:
            mask.index_fill_(consumer, torch.tensor(indices, dtype=torch.int64), 1.0)
        return weight * mask

    def _read(self, call: Call, x: Tensor, groups: int) -> Tensor:
        """Return what a layer reads with zeros for removed channels, which its weight of zero does not make of 0 / 0.

        Scales that removed channels are divided by are zero, too. A convolution with several groups is left out.
        """
        weight: Any = call["weight"]
        kept = self.plan.kept.get(f"{call.owner}.weight", {}).get(0 if call.key == "conv_transpose" else 1, [])
        if groups > 1 or not kept or not isinstance(kept[0], int):
            return x
        axis = x.ndim - 1 if call.key == "linear" else x.ndim - weight.ndim + 1
        removed = torch.ones(x.shape[axis], dtype=torch.bool)
        removed[torch.tensor(kept)] = False
        return x.masked_fill(removed.view([-1 if a == axis else 1 for a in range(x.ndim)]), 0.0)

    def _masked_norm(self, call: Call, x: Tensor, kept: Kept) -> Tensor:
        weight, bias = (self._parameter(call, name) for name in ("weight", "bias"))
        if call.key == "group_norm":
            return _masked_group_norm(x, kept, weight, bias, call["eps"])
        shape = concrete(call["normalized_shape"])
        dims = 1 if isinstance(shape, int) else len(shape)
        if call.key == "rms_norm":
            return _masked_rms_norm(x, dims, _flat(kept), weight, call["eps"])
        return _masked_layer_norm(x, dims, _flat(kept), weight, bias, call["eps"])

    def _parameter(self, call: Call, name: str) -> Tensor | None:
        value = call.params.get(name)
        if isinstance(value, fx.Node):
            return self.env[value]
        return self._value(f"{call.owner}.{name}", value) if isinstance(value, Tensor) else None

    def _value(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor with zeros for everything that was removed, so that removed channels are born as zeros."""
        value = self.state[name] if name in self.state else double(tensor).to(self.device)
        if value.is_floating_point():
            value = value.to(self.dtype)
        if not value.is_floating_point() or name.rpartition(".")[2].startswith("running_"):
            return value
        for axis, kept in self.plan.kept.get(name, {}).items():
            if kept and isinstance(kept[0], int):
                mask = torch.zeros(value.shape[axis], dtype=value.dtype)
                mask[torch.tensor(kept)] = 1.0
                value = value * mask.view([-1 if a == axis else 1 for a in range(value.ndim)])
        return value


def _of_kept(call: Call, x: Tensor, kept: list[int]) -> Tensor:
    """Return what a reduction over channels is a figure of: the kept ones, along the first reduced axis."""
    dim = concrete(call["dim"])
    dims = range(x.ndim) if dim is None or dim == () else [dim] if isinstance(dim, int) else dim
    return x.index_select(min(d % x.ndim for d in dims), torch.tensor(kept))


def _masked_layer_norm(
    x: Tensor, dims: int, kept: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the last ``dims`` axes, with the statistics of the kept channels only.

    The pruned axis is the one along which the kept indices fit; all others are whole.
    """
    axis = _pruned_axis(x, dims, kept)
    inside = x.index_select(axis, torch.tensor(kept))
    over = list(range(x.ndim - dims, x.ndim))
    mean = inside.mean(over, keepdim=True)
    var = inside.var(over, unbiased=False, keepdim=True)
    y = (x - mean) / torch.sqrt(var + eps)
    y = y * weight if weight is not None else y
    y = y + bias if bias is not None else y
    return _only(y, axis, kept)


def _masked_rms_norm(x: Tensor, dims: int, kept: list[int], weight: Tensor | None, eps: float | None) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) over the last ``dims`` axes, with the mean of the kept channels only.

    Zhang and Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019. Without ``eps`` it is that of x's dtype.
    """
    axis = _pruned_axis(x, dims, kept)
    inside = x.index_select(axis, torch.tensor(kept))
    mean = inside.square().mean(list(range(x.ndim - dims, x.ndim)), keepdim=True)
    y = x * torch.rsqrt(mean + (torch.finfo(x.dtype).eps if eps is None else eps))
    return _only(y * weight if weight is not None else y, axis, kept)


def _only(y: Tensor, axis: int, kept: list[int]) -> Tensor:
    """Zero what is not kept."""
    mask = torch.zeros(y.shape[axis], dtype=y.dtype)
    mask[torch.tensor(kept)] = 1.0
    return y * mask.view([-1 if a == axis else 1 for a in range(y.ndim)])


def _pruned_axis(x: Tensor, dims: int, kept: list[int]) -> int:
    fits = [a for a in range(x.ndim - dims, x.ndim) if x.shape[a] > max(kept)]
    return fits[0]


def _masked_group_norm(x: Tensor, kept: Kept, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Per group, over its kept channels and all positions; groups without a kept channel come out zero."""
    per_group = x.shape[1] // len(kept)
    y = torch.zeros_like(x)
    for group, columns in enumerate(kept):
        if not columns:
            continue
        block = x[:, group * per_group : (group + 1) * per_group]
        inside = block[:, columns].flatten(1)
        shape = [-1] + [1] * (x.ndim - 1)
        mean, var = inside.mean(1).view(shape), inside.var(1, unbiased=False).view(shape)
        y[:, group * per_group : (group + 1) * per_group] = (block - mean) / torch.sqrt(var + eps)
    shape = [1, -1] + [1] * (x.ndim - 2)
    y = y * weight.view(shape) if weight is not None else y
    return y + bias.view(shape) if bias is not None else y


def double(tensor: Tensor) -> Tensor:
    """Return the tensor on the CPU, in float64 if it holds real numbers."""
    return tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else tensor.dtype)


def _flat(kept: Kept) -> list[int]:
    return [i for part in kept for i in (part if isinstance(part, list) else [part])]


__all__ = ["MaskedOriginal", "double"]
