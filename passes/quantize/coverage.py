"""What runs in integers, what does not and why, and how far the outputs moved."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...compiler.cost import layer_costs
from ...compiler.ops import Call
from ..base import Remark, RemarkKind
from ..edit import Edit
from .placement import Kind, Placement, describe

_PASS = "quantize"


def refusals(edit: Edit, placement: Placement) -> tuple[Remark, ...]:
    """Say of every operation on real numbers that stays in float why; before anything is rewritten."""
    found: list[Remark] = []
    for node, place in placement.places.items():
        call = edit.call(node)
        if place.kind is Kind.FLOAT and call is not None and not _trivial(call, place.reason):
            found.append(Remark(RemarkKind.MISSED, _PASS, describe(call), f"in float: {place.reason}"))
    return tuple(found)


def _trivial(call: Call, reason: str) -> bool:
    """Tell whether an operation in float is not worth a word: it only moves what is in float anyway."""
    return reason == "no integers reach it" and call.key in ("getitem", "flatten", "reshape", "permute")


def coverage(edit: Edit, placement: Placement, layers: Iterable[Call]) -> dict[str, int | float]:
    """Count operations in int8 and in float, and the share of the MACs that is in int8."""
    weighted = {call.owner for call in layers}
    total = inside = 0
    for cost in layer_costs(edit.program):
        total += cost.macs
        inside += cost.macs if cost.layer in weighted else 0
    kinds = [place.kind for place in placement.places.values()]
    return {
        "int8": sum(kind is not Kind.FLOAT for kind in kinds),
        "float": sum(kind is Kind.FLOAT for kind in kinds),
        "int8_macs": round(inside / max(total, 1), 4),
    }


def difference(before: list[Tensor], after: list[Tensor]) -> dict[str, int | float]:
    """Compare the outputs on calibration data: signal to noise, and how often the largest logit is the same."""
    a, b = torch.cat(before).double(), torch.cat(after).double()
    noise = float((a - b).square().mean())
    found: dict[str, int | float] = {
        "sqnr_db": round(float(10 * torch.log10(a.square().mean() / max(noise, 1e-30))), 2)
    }
    if a.ndim == 2 and a.shape[1] > 1:
        found["same_top1"] = round(float((a.argmax(1) == b.argmax(1)).double().mean()), 4)
    return found
