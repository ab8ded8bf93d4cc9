"""``fold-bn``: batch norms disappear into the convolutions and linear layers next to them.

    s = gamma / sqrt(var + eps)        t = beta - mean s                  per channel, float64

    conv -> bn    s (W x + b) + t      =  W' x + b'     W'[o] = s[o] W[o]      b' = s b + t
    bn -> conv    W (s x + t) + b      =  W' x + b'     W'[:, i] = W[:, i] s[i]    b' = b + sum_ik W[:, i, k] t[i]

    conv            weight [O, I/g, k...]   output axis 0, input axis 1 (of group j: inputs j I/g ...)
    conv_transpose  weight [I, O/g, k...]   output axis 1, input axis 0
    linear          weight [O, I]

The first form is exact wherever the layer feeds nothing but the norm. The second is exact where the layer does not pad
with zeros, or nothing is shifted (t = 0): behind a padded convolution the shift would be missing at the border. All of
it holds for running statistics, that is for inference; computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..compiler.ops import Call
from ..compiler.program import Program
from ..compiler.shapes import concrete, is_tensor, shape_of
from .base import Contract, Pass, PassResult, Remark, RemarkKind
from .edit import Edit

NOTE = "batch norms are folded with their running statistics: the result is for inference, and trains without them"
_LAYERS = ("conv", "conv_transpose", "linear")


class _RefusedError(Exception):
    """Why a batch norm stays."""


@dataclass(frozen=True)
class FoldBN(Pass):
    """Fold every batch norm that can be folded exactly; say of the others why not."""

    name: ClassVar[str] = "fold-bn"
    contract: ClassVar[Contract] = Contract.EXACT

    def run(self, program: Program) -> PassResult:
        """Fold; see :class:`~.base.Pass`."""
        edit = Edit(program)
        remarks: list[Remark] = []
        folded = left = 0
        for node in list(edit.graph.nodes):
            norm = edit.call(node)
            if norm is None or norm.key != "batch_norm":
                continue
            where = norm.owner or node.name
            try:
                into = _fold(edit, norm)
            except _RefusedError as reason:
                left += 1
                remarks.append(Remark(RemarkKind.MISSED, self.name, where, f"stays: {reason}"))
            else:
                folded += 1
                remarks.append(Remark(RemarkKind.APPLIED, self.name, where, f"folded into {into}"))
        stats = {"folded": folded, "left": left}
        if not folded:
            return PassResult(program, changed=False, stats=stats, remarks=tuple(remarks))
        return PassResult(edit.finish(NOTE), changed=True, stats=stats, remarks=tuple(remarks))


def _fold(edit: Edit, norm: Call) -> str:
    """Fold one batch norm; return the names of the layers that took it in.

    Raises:
        _RefusedError: It cannot be folded exactly.
    """
    scale, shift = _affine(edit, norm)
    reasons: list[str] = []
    try:
        producer = _producer(edit, norm)
        _scale_outputs(edit, producer, scale, shift)
        edit.replace(norm.node, producer.node)
        return producer.owner
    except _RefusedError as reason:
        reasons.append(str(reason))
    try:
        consumers = _consumers(edit, norm, shift)
    except _RefusedError as reason:
        raise _RefusedError(f"{reasons[0]}; {reason}") from None
    for consumer in consumers:
        _scale_inputs(edit, consumer, scale, shift)
    edit.replace(norm.node, norm.input)
    return ", ".join(consumer.owner for consumer in consumers)


def _affine(edit: Edit, norm: Call) -> tuple[Tensor, Tensor]:
    """Return s and t, float64 [C]."""
    if norm.module is None:
        raise _RefusedError("it is a function whose statistics the graph computes")
    if edit.is_shared(norm):
        raise _RefusedError("it is called more than once, or shares its tensors")
    mean, var = norm["running_mean"], norm["running_var"]
    if mean is None or var is None:
        raise _RefusedError("it keeps no running statistics, so it normalises with those of the batch")
    scale = torch.rsqrt(var.detach().double() + norm["eps"])
    if norm["weight"] is not None:
        scale = scale * norm["weight"].detach().double()
    shift = -mean.detach().double() * scale
    return scale, shift if norm["bias"] is None else shift + norm["bias"].detach().double()


def _layer(edit: Edit, node: Any, what: str) -> Call:
    """Return a convolution or linear layer that nothing else depends on."""
    call = edit.call(node) if isinstance(node, fx.Node) else None
    if call is None or call.key not in _LAYERS:
        title = call.title if call is not None else getattr(node, "name", "a constant")
        raise _RefusedError(f"{what} {title!r} ({getattr(node, 'name', node)}), which takes in no scale")
    if call.module is None:
        raise _RefusedError(f"{what} {call.node.name}, whose weight the graph computes")
    if edit.is_shared(call):
        raise _RefusedError(f"{what} {call.owner}, which is called more than once or shares its weight")
    if not call["weight"].is_floating_point():
        raise _RefusedError(f"{what} {call.owner}, which is quantized")
    if call.key == "linear" and len(shape_of(call.node)) != 2:
        raise _RefusedError(f"{what} {call.owner}, whose channels stand along another axis")
    return call


def _producer(edit: Edit, norm: Call) -> Call:
    call = _layer(edit, norm.input, "it follows")
    if len(call.node.users) > 1:
        others = [user.name for user in call.node.users if user is not norm.node]
        raise _RefusedError(f"{call.owner} also feeds {', '.join(others[:3])}")
    return call


def _consumers(edit: Edit, norm: Call, shift: Tensor) -> list[Call]:
    if not is_tensor(norm.input):
        raise _RefusedError("its input is no tensor of the graph")
    found: list[Call] = []
    for user in norm.node.users:
        call = _layer(edit, user, "it feeds")
        if bool(shift.any()) and not _sees_constants(call):
            raise _RefusedError(f"it feeds {call.owner}, which pads with zeros, where the shift would be missing")
        found.append(call)
    return found


def _sees_constants(call: Call) -> bool:
    """Tell whether a constant input gives a constant output, at the border too."""
    if call.key == "conv_transpose":
        return False  # fewer taps reach the border
    if call.key == "linear" or getattr(call.module, "padding_mode", "zeros") != "zeros":
        return True
    padding = concrete(call["padding"])
    if isinstance(padding, str):
        return padding == "valid" or all(k == 1 for k in call["weight"].shape[2:])
    return not any(padding if isinstance(padding, (tuple, list)) else [padding])


def _scale_outputs(edit: Edit, call: Call, scale: Tensor, shift: Tensor) -> None:
    weight, bias = call["weight"], call["bias"]
    wide = weight.detach().double()
    if call.key == "conv_transpose":  # [g I/g, O/g, k...] with group j's outputs along axis 1
        groups = int(call["groups"])
        rows = wide.reshape(groups, -1, *wide.shape[1:])
        wide = (rows * scale.reshape(groups, 1, -1, *[1] * (wide.ndim - 2))).reshape(wide.shape)
    else:
        wide = wide * scale.reshape(-1, *[1] * (wide.ndim - 1))
    moved = shift if bias is None else scale * bias.detach().double() + shift
    edit.set_parameters(call.owner, {"weight": wide, "bias": moved})


def _scale_inputs(edit: Edit, call: Call, scale: Tensor, shift: Tensor) -> None:
    weight, bias = call["weight"], call["bias"]
    wide = weight.detach().double()
    groups = int(concrete(call.params.get("groups", 1)))
    kernel = [1] * (wide.ndim - 2)
    if call.key == "conv_transpose":
        moved = torch.zeros(shape_of(call.node)[1], dtype=torch.float64, device=wide.device)
        wide = wide * scale.reshape(-1, 1, *kernel)
    else:  # [g O/g, I/g, k...]: row block j reads the inputs of group j
        rows = wide.reshape(groups, -1, *wide.shape[1:])
        moved = (rows * shift.reshape(groups, 1, -1, *kernel)).reshape(len(wide), -1).sum(1)
        wide = (rows * scale.reshape(groups, 1, -1, *kernel)).reshape(wide.shape)
    moved = moved if bias is None else bias.detach().double() + moved
    edit.set_parameters(call.owner, {"weight": wide, "bias": moved})
