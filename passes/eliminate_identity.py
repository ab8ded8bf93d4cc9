"""``eliminate-identity``: calls that give back their input, in evaluation mode, go.

    dropout(x), stochastic_depth(x), Identity(x)                                x
    return x, auxiliary heads (in training only)                                return x
    view / reshape / flatten / expand / permute ... that change no shape        x      for any batch size
    pad by nothing, pools of one position, interpolation to the same size       x
    cat([x]), x + 0, x * 1, x.to(its own dtype)                                 x

Copies (clone, contiguous) stay: what reads them may rely on their memory being laid out anew, or their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import fx

from ..compiler.auxiliary import answer_of, without_training
from ..compiler.ops import Call
from ..compiler.program import Program
from ..compiler.shapes import concrete, is_tensor, value_of, with_another_batch
from .base import Contract, Pass, PassResult, Remark, RemarkKind
from .edit import Edit

NOTE = "what only training needs (dropout, stochastic depth, auxiliary heads) is removed: the result is for inference"

_RANDOM: Final = frozenset(
    "dropout dropout_ dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout "
    "stochastic_depth Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout".split()
)
_ARRANGING: Final = frozenset("reshape reshape_as flatten unflatten squeeze unsqueeze expand expand_as".split())
"""Operations that keep all elements in their order: the same shape means the same tensor."""


@dataclass(frozen=True)
class EliminateIdentity(Pass):
    """Remove calls that give back their input when the model is evaluated."""

    name: ClassVar[str] = "eliminate-identity"
    contract: ClassVar[Contract] = Contract.EXACT

    def run(self, program: Program) -> PassResult:
        """Remove; see :class:`~.base.Pass`."""
        edit = Edit(without_training(program))
        remarks: list[Remark] = []
        notes: set[str] = set()
        if (answer := answer_of(program.graph)) is not None:
            notes.add(NOTE)
            remarks.append(Remark(RemarkKind.APPLIED, self.name, answer.name, "auxiliary heads are removed"))
        elsewhere = with_another_batch(edit.program)
        for node in list(edit.graph.nodes):
            call = edit.call(node)
            kept = _same_as(call) if call is not None else None
            if call is None or kept is None or (call.key in _ARRANGING and elsewhere[kept] != elsewhere[node]):
                continue
            notes |= {NOTE} if call.title in _RANDOM else set()
            remarks.append(Remark(RemarkKind.APPLIED, self.name, call.owner or node.name, f"{call.title} is removed"))
            edit.replace(node, kept)
        stats = {"removed": len(remarks)}
        if not remarks:
            return PassResult(program, changed=False, stats=stats)
        return PassResult(edit.finish(*notes), changed=True, stats=stats, remarks=tuple(remarks))


def _same_as(call: Call) -> fx.Node | None:
    """Return the tensor that a call gives back, if it does nothing else."""
    if call.title in _RANDOM:
        return call.input
    if call.key == "cat" and isinstance(parts := call["tensors"], (list, tuple)):
        return parts[0] if len(parts) == 1 and is_tensor(parts[0]) else None
    if call.key == "binary":
        return _neutral(call)
    source = call.params.get("input")
    if not is_tensor(source) or value_of(source) != value_of(call.node) or not _keeps(call):
        return None
    return source


def _keeps(call: Call) -> bool:
    """Tell whether a call whose result has its input's shape and dtype has its input's values too."""
    if call.key in _ARRANGING or call.title in ("Identity", "to", "float", "double", "half", "bfloat16", "type_as"):
        return True
    if call.key == "permute":
        dims = concrete(call["dims"])
        return [d % len(dims) for d in dims] == list(range(len(dims)))
    if call.key == "transpose":
        rank = len(value_of(call.node).shape)
        return concrete(call["dim0"]) % rank == concrete(call["dim1"]) % rank
    if call.key == "pad":
        return not any(concrete(call["pad"]))
    if call.key in ("max_pool", "avg_pool"):
        one = all(k == 1 for k in _each(call["kernel_size"]))
        return one and not any(_each(call["padding"])) and not call.params.get("return_indices")
    if call.key == "adaptive_pool":  # one cell per position
        return call["output_size"] is None or all(n is None for n in _each(call["output_size"]))
    if call.key == "interpolate":
        scales = concrete(call["scale_factor"])
        return scales is not None and all(s == 1 for s in _each(scales))
    return False


def _neutral(call: Call) -> fx.Node | None:
    """Of x + 0, x - 0, x * 1, x / 1 with a literal return x; of the same dtype only."""
    name = call.title.rstrip("_")
    neutral = {"add": 0, "iadd": 0, "sub": 0, "isub": 0, "mul": 1, "imul": 1, "truediv": 1, "itruediv": 1, "div": 1}
    if name not in neutral or call.node.kwargs:
        return None
    left, right = call.input, call["other"]
    if not is_tensor(left) and name in ("add", "mul"):
        left, right = right, left
    if not is_tensor(left) or not isinstance(right, int | float) or isinstance(right, bool):
        return None
    same = value_of(left) == value_of(call.node) and value_of(left).dtype.is_floating_point
    return left if same and right == neutral[name] and math.copysign(1, right) > 0 else None


def _each(value: Any) -> tuple[Any, ...]:
    value = concrete(value)
    return tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,)
