"""The layers that can be refitted, each with its counterpart in the dense program and with what stands behind it.

    conv -> [batch norm] -> [+ other] -> [relu]         total = s (W x + b) + t + other

Whatever a layer's output passes before it meets something that is not affine may be looked at instead of the output
itself: the total of a residual branch carries the errors of the trunk too, which the branch can then make up for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from ...compiler.ops import Call, normalise
from ...compiler.plan import Kept, Plan
from ...compiler.program import Program
from ...compiler.shapes import is_tensor, shape_of
from ..edit import Edit, copy_layer

WEIGHTED: Final = ("conv", "linear")
_CHANNELWISE: Final = frozenset("unary copy batch_norm prelu max_pool avg_pool adaptive_pool interpolate".split())
"""Operations of one tensor that keep its channels where they are."""


@dataclass(frozen=True, eq=False)
class Refittable:
    """A layer of the pruned program."""

    call: Call
    dense: Call
    """The same layer before pruning."""
    rows: Tensor
    """Which of its output channels are left: indices [O'] into the dense layer's."""
    norm: Call | None
    """The batch norm that alone reads it."""
    end: fx.Node
    """The last node of the affine chain: the layer itself, its norm, or the addition behind."""
    other: fx.Node | None
    """The other operand of the addition."""
    dense_end: fx.Node
    relu: bool
    """Whether nothing but a ReLU reads the end."""

    @property
    def path(self) -> str:
        """The layer's name."""
        return self.call.owner


@dataclass(frozen=True, eq=False)
class Channels:
    """Where the channels of a tensor stand, and which of the dense ones are left; ``None`` for all."""

    axis: int
    left: Tensor | None

    def of(self, dense: Tensor) -> Tensor:
        """Return what is left of the dense program's tensor."""
        return dense if self.left is None else dense.index_select(self.axis, self.left)


class Pairs:
    """Finds a pruned program's layers in the dense program."""

    def __init__(self, program: Program, dense: Program, plan: Plan) -> None:
        self.program, self.dense, self.plan = program, dense, plan
        self.refused: dict[str, str] = {}
        """Layer -> why it cannot be refitted."""
        self._calls = {node: normalise(program, node) for node in _calls(program)}
        self._dense_by_name: dict[str, fx.Node] = {node.name: node for node in dense.graph.nodes}
        self._dense_by_path = {str(n.target): n for n in dense.graph.nodes if n.op == "call_module"}
        self._uses = _uses(program)
        self._cut: dict[str, list[Mapping[int, Kept]]] = {}
        """Layer -> what is left of its tensors, by axis."""
        for name, axes in plan.kept.items():
            self._cut.setdefault(name.rpartition(".")[0], []).append(axes)

    def changed(self) -> set[fx.Node]:
        """Return the nodes of the program whose channels have other values than in the dense program.

        A layer that lost nothing but output channels gives in the others what it gave.
        """
        found: set[fx.Node] = set()
        for node in self.program.graph.nodes:
            if self._reads_less(node) or any(read in found for read in node.all_input_nodes):
                found.add(node)
        return found

    def _reads_less(self, node: fx.Node) -> bool:
        """Tell whether pruning changed what a node computes, beyond how many channels it gives."""
        if node.name in self.plan.norms:
            return True
        if node.op == "get_attr":
            return node.target in self.plan.kept
        cut = self._cut.get(str(node.target), []) if node.op == "call_module" else []
        call = self._calls.get(node)
        by_rows = call is not None and call.key in (*WEIGHTED, "batch_norm", "prelu")
        return any(set(axes) - {0} if by_rows else axes for axes in cut)

    def refittable(self, *, sums: bool) -> Iterator[Refittable]:
        """Yield the layers that read other values than in the dense program, or fewer, in graph order.

        Args:
            sums: Look at the total of a residual branch where one ends; the first branch in graph order is it.
        """
        changed = self.changed()
        taken: set[fx.Node] = set()
        for node, call in self._calls.items():
            if call.key not in (*WEIGHTED, "conv_transpose") or not is_tensor(call.input):
                continue
            if call.input not in changed and not self._reads_less(node):
                continue
            reason = self._why_not(call)
            if reason:
                self.refused[call.owner or node.name] = reason
                continue
            yield self._found(call, taken, sums=sums)

    def channels(self) -> dict[fx.Node, Channels]:
        """Return the channels of the tensors that hold those of a layer, in its order; of others nothing is known."""
        found: dict[fx.Node, Channels] = {}
        for node, call in self._calls.items():
            if call.module is not None and call.key in WEIGHTED:
                kept: Any = self.plan.kept.get(f"{call.owner}.weight", {}).get(0)
                rank = len(shape_of(node))
                axis = rank - 1 if call.key == "linear" else rank - call["weight"].ndim + 1
                found[node] = Channels(axis, None if kept is None else torch.tensor(kept))
            elif call.key in _CHANNELWISE and call.params.get("input") in found:
                found[node] = found[call.input]
            elif call.key == "binary":
                same = [x for x in (call.input, call["other"]) if is_tensor(x) and shape_of(x) == shape_of(node)]
                known = [x for x in same if x in found]
                if known:
                    found[node] = found[known[0]]
        return found

    def is_weighted(self, node: fx.Node) -> bool:
        """Tell whether a node is a convolution or a linear layer."""
        call = self._calls.get(node)
        return call is not None and call.key in (*WEIGHTED, "conv_transpose")

    def any_weighted(self, nodes: Iterable[fx.Node]) -> bool:
        """Tell whether any of some nodes is."""
        return any(map(self.is_weighted, nodes))

    def twin(self, node: fx.Node) -> fx.Node | None:
        """Return the dense program's node of the same name, if it does the same."""
        twin = self._dense_by_name.get(node.name)
        return twin if twin is not None and (twin.op, twin.target) == (node.op, node.target) else None

    def _why_not(self, call: Call) -> str:
        if call.module is None:
            return "its weight is an argument of a function"
        if call.key == "conv_transpose":
            return "transposed convolutions are not refitted"
        if not call["weight"].is_floating_point() or call.params.get("weight_scale") is not None:
            return "its weight is quantized"
        if any(self._uses[id(thing)] > 1 for thing in (call.module, *call.module.parameters())):
            return "it is called more than once, or shares its tensors"
        dense = self._dense_by_path.get(call.owner)
        return "" if dense is not None else "the dense program has no such layer"

    def _found(self, call: Call, taken: set[fx.Node], *, sums: bool) -> Refittable:
        dense = normalise(self.dense, self._dense_by_path[call.owner])
        kept: Any = self.plan.kept.get(f"{call.owner}.weight", {}).get(0, range(len(dense["weight"])))
        end, dense_end, other = call.node, dense.node, None
        norm = self._norm(call)
        if norm is not None and (twin := self.twin(norm.node)) is not None and dense.node in twin.all_input_nodes:
            end, dense_end = norm.node, twin
        else:
            norm = None
        if sums and (found := self._total(end)) is not None and found[0] not in taken:
            total, operand = found
            twin = self.twin(total)
            if twin is not None and dense_end in twin.all_input_nodes:
                taken.add(total)
                end, dense_end, other = total, twin, operand
        return Refittable(call, dense, torch.tensor(list(kept)), norm, end, other, dense_end, relu=self._only_relu(end))

    def _norm(self, call: Call) -> Call | None:
        """Return the batch norm that alone reads a layer, if it has statistics of its own that may be changed."""
        if len(call.node.users) != 1:
            return None
        norm = self._calls.get(next(iter(call.node.users)))
        if norm is None or norm.key != "batch_norm" or norm.module is None or norm["running_mean"] is None:
            return None
        things = (norm.module, *norm.module.parameters(), *norm.module.buffers())
        return norm if all(self._uses[id(thing)] <= 1 for thing in things) else None

    def _total(self, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """Return the addition that alone reads a node, and its other operand, of the same shape."""
        if len(node.users) != 1:
            return None
        user = next(iter(node.users))
        call = self._calls.get(user)
        if call is None or call.key != "binary" or call.title.lower().strip("_") not in ("add", "iadd"):
            return None
        if set(call.params) - {"input", "other"}:
            return None  # alpha=
        other = call["other"] if call.input is node else call.input
        if not is_tensor(other) or other is node or shape_of(other) != shape_of(node):
            return None
        return user, other

    def _only_relu(self, node: fx.Node) -> bool:
        calls = [self._calls.get(user) for user in node.users]
        return bool(calls) and all(
            c is not None and c.key == "unary" and c.title.lower() in ("relu", "relu_") for c in calls
        )


def affine(norm: Call | None, channels: int) -> tuple[Tensor, Tensor]:
    """Return s and t of a batch norm in evaluation, s x + t, float64 [C]; 1 and 0 where there is none."""
    if norm is None:
        return torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    scale = torch.rsqrt(norm["running_var"].detach().double() + norm["eps"])
    if norm["weight"] is not None:
        scale = scale * norm["weight"].detach().double()
    shift = -norm["running_mean"].detach().double() * scale
    return scale, shift if norm["bias"] is None else shift + norm["bias"].detach().double()


def shift_output(edit: Edit, layer: Refittable, shift: Tensor, weight: Tensor | None = None) -> None:
    """Add a constant to what a layer gives: to its bias, or from the mean of the norm behind, or as a new bias.

    Args:
        edit: Of the pruned program.
        layer: The layer.
        shift: Float64 [O'].
        weight: A new weight, if it gets one; of the old one's shape or flat.
    """
    old: Any = edit.program.owner(layer.path)
    tensors = {} if weight is None else {"weight": weight.reshape(old.weight.shape)}
    if old.bias is None and layer.norm is not None:
        norm: Any = edit.program.owner(layer.norm.owner)
        set_tensors(edit, layer.norm.owner, {"running_mean": norm.running_mean.double() - shift})
    else:
        tensors["bias"] = shift if old.bias is None else old.bias.detach().double() + shift
    if tensors:
        set_tensors(edit, layer.path, tensors)


def set_tensors(edit: Edit, path: str, values: Mapping[str, Tensor]) -> None:
    """Put a copy of a layer in its place that has other parameters or buffers, rounded at once to the old dtype."""
    old: Any = edit.program.owner(path)
    layer = copy_layer(old)
    for name, value in values.items():
        like: Tensor = old.weight if getattr(old, name, None) is None else getattr(old, name)
        rounded = value.to(like.device, like.dtype)
        if name in layer._buffers:
            layer._buffers[name] = rounded
        else:
            layer._parameters[name] = nn.Parameter(rounded, requires_grad=like.requires_grad)
    edit.set_layer(path, layer)


def _calls(program: Program) -> Sequence[fx.Node]:
    return [node for node in program.graph.nodes if node.op.startswith("call_")]


def _uses(program: Program) -> Mapping[int, int]:
    """Count how many nodes read each layer and each tensor, by identity."""
    found: Counter[int] = Counter()
    for node in program.graph.nodes:
        if node.op == "call_module":
            layer = program.owner(str(node.target))
            found.update(map(id, [layer, *layer.parameters(), *layer.buffers()]))
        elif node.op == "get_attr":
            found[id(program.attribute(str(node.target)))] += 1
    return found
