"""``fold-constants``: what depends on no input is computed once, and becomes a buffer.

    f(parameter, buffer, literal)   ->   buffer folded_0

Computed in float64 and rounded once to the dtype that the graph would have had. Only what is deterministic, and only
where the buffer is no larger than what it is computed from, or small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, fx

from ..compiler.mutation import is_in_place
from ..compiler.program import TRAINING, Program, place
from ..compiler.shapes import is_tensor, set_value, value_of
from .base import Contract, Pass, PassResult, Remark, RemarkKind
from .edit import Edit

NOTE = "what depends on no input was computed once: such parameters are no longer trained"
SMALL: Final = 1 << 16
"""Elements up to which a folded tensor may be larger than what it is computed from."""

_RANDOM: Final = frozenset("rand randn randint rand_like randn_like bernoulli dropout stochastic_depth rrelu".split())


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute what depends on no input."""

    name: ClassVar[str] = "fold-constants"
    contract: ClassVar[Contract] = Contract.EXACT

    def run(self, program: Program) -> PassResult:
        """Fold; see :class:`~.base.Pass`."""
        edit = Edit(program)
        known = _constants(edit)
        remarks: list[Remark] = []
        for node in list(edit.graph.nodes):
            if (
                node not in known
                or not is_tensor(node)
                or node.op == "get_attr"
                or all(user in known for user in node.users)
            ):
                continue
            wanted, value = value_of(node), known[node]
            if value.numel() > max(SMALL, sum(known[n].numel() for n in _roots(node, known))):
                reason = f"{node.name} depends on no input, but is larger than what it is computed from"
                remarks.append(Remark(RemarkKind.MISSED, self.name, node.name, reason))
                continue
            with edit.graph.inserting_before(node):
                name = _free_name(edit.program.root)
                place(edit.program.root, name, value.to(wanted.dtype), persistent=True)
                made = edit.graph.create_node("get_attr", name, (), {})
            set_value(made, wanted)
            known[made] = value  # other constants may be computed from it
            remarks.append(Remark(RemarkKind.APPLIED, self.name, node.name, f"computed once, now the buffer {name}"))
            node.replace_all_uses_with(made)
        folded = sum(r.kind is RemarkKind.APPLIED for r in remarks)
        stats = {"folded": folded}
        if not folded:
            return PassResult(program, changed=False, stats=stats, remarks=tuple(remarks))
        return PassResult(edit.finish(NOTE), changed=True, stats=stats, remarks=tuple(remarks))


def _constants(edit: Edit) -> dict[fx.Node, Any]:
    """Return the value, real ones in float64, of everything that depends on no input: tensors, and their sizes."""
    known: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in edit.graph.nodes:
            if node.op == "get_attr" and is_tensor(node) and node.target != TRAINING:
                value: Tensor = edit.program.attribute(str(node.target)).detach()
                known[node] = value.double() if value.is_floating_point() else value
            elif node.op in ("call_function", "call_method") and _computable(edit, node, known):
                known[node] = _run(node, known)
    return known


def _computable(edit: Edit, node: fx.Node, known: Mapping[fx.Node, Any]) -> bool:
    inputs = node.all_input_nodes
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if not is_tensor(node) and not _is_size(node):
        return False
    retyped = any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values()))
    if not inputs or name.rstrip("_") in _RANDOM or name in ("half", "bfloat16", "float", "type_as") or retyped:
        return False
    return all(n in known for n in inputs) and not is_in_place(node, edit.program.root)


def _is_size(node: fx.Node) -> bool:
    """Tell whether a node asks for sizes, or computes with them."""
    computes = getattr(node.target, "__module__", "") == "_operator"
    return computes or node.target == "size" or (node.target is getattr and node.args[1:] == ("shape",))


def _run(node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
    args: Any = fx.map_arg(node.args, lambda n: known[n])
    kwargs: Any = fx.map_arg(node.kwargs, lambda n: known[n])
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function: Any = node.target
    return function(*args, **kwargs)


def _roots(node: fx.Node, known: Mapping[fx.Node, Any]) -> set[fx.Node]:
    """Return the stored tensors that a constant is computed from."""
    found: set[fx.Node] = set()
    stack, seen = [node], set[fx.Node]()
    while stack:
        at = stack.pop()
        if at in seen:
            continue
        seen.add(at)
        found |= {at} if at.op == "get_attr" else set()
        stack += at.all_input_nodes
    return found


def _free_name(root: torch.nn.Module) -> str:
    number = 0
    while hasattr(root, f"folded_{number}"):
        number += 1
    return f"folded_{number}"
