"""Models that are Python around networks: what traces is traced, region by region, and the regions become one program.

A detector cannot be traced as a whole: between backbone, proposals and heads stands code that loops over boxes. Its
largest submodules that can be traced are *regions*. Their graphs stand side by side in one program, over the model's
own qualified names, connected where the model hands on a tensor untouched, or through a module with a *contract*, such
as RoI pooling, for which a stand-in with the same coupling of channels is put. Everything else is a *border*: what
Python code gives is an input of the program, and what it reads an output, whose channels stay.

    backbone -> {0, 1, 2, 3, pool} -+-> rpn.head ............................ border: scores, deltas
                                    +-> pooling (stand-in) -> box_head -> ... border: logits
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from .capture import trace
from .collection import no_collection
from .contracts import contract_of
from .errors import CaptureError
from .joining import Border, Joining, Region, Regions, call_flat, filled
from .layers import layer_class
from .program import Program
from .recording import Call, Structure, record, unchanged, watch

__all__ = ["Border", "Region", "Regions", "find_regions"]


@no_collection()
def find_regions(model: nn.Module, *inputs: Any, training: Sequence[Any] | None = None) -> Regions:
    """Find what of a model can be traced, and join it to one program.

    The model is run twice, in evaluation mode, without gradients.

    Args:
        model: Any module; it is left as it is, and the program shares its parameters.
        inputs: What the model is called with.
        training: What it is called with in training: it is then run once more, as in training. Otherwise it is not
            seen what its code does only in training with a tensor that one region hands to another.

    Raises:
        CaptureError: The model does not run on these inputs, or nothing of it can be traced.
    """
    root = record(model, inputs)
    traced: dict[int, Program] = {}
    closed: list[Call] = []
    outside: dict[str, str] = {}
    with unchanged(model):
        _close(root, closed, traced, outside)
    if not traced:
        why = "; ".join(f"{path or 'forward'}: {reason}" for path, reason in outside.items())
        raise CaptureError(f"nothing of {type(model).__name__} can be traced", where=why or None)
    watched = watch(model, inputs, closed)
    trained = watch(model, training, closed, training=True) if training is not None else None
    return Joining(model, root, watched, trained, traced, outside).run()


def _close(call: Call, closed: list[Call], traced: dict[int, Program], outside: dict[str, str]) -> None:
    """Choose the outermost calls that trace, or have a contract."""
    if contract_of(call.module) is not None:
        closed.append(call)
        return
    reason = "it is given or gives something else than tensors"
    is_layer = layer_class(type(call.module)).__module__.startswith("torch.nn")
    has_weights = next(call.module.parameters(), None) is not None or next(call.module.buffers(), None) is not None
    if (is_layer or has_weights) and call.gave is not None and call.gave.tensors:
        if call.given.is_plain and call.gave.is_plain:
            try:
                traced[call.number] = _trace(call)
            except Exception as error:  # whatever its code does that values of a graph cannot
                reason = (str(error).splitlines() or [type(error).__name__])[0]
            else:
                closed.append(call)
                return
        if any(True for _ in call.module.parameters(recurse=not call.parts)):
            outside[call.path] = reason
    for part in call.parts:
        _close(part, closed, traced, outside)


# Tracing one call -----------------------------------------------------------------------------------------------------


class _Flat(nn.Module):
    """A call as a module: the tensors come in one by one, and go out as a tuple."""

    def __init__(self, module: nn.Module, given: Structure, gave: Structure) -> None:
        super().__init__()
        self.region = module
        self.given, self.gave = given, gave
        self.training = module.training


@cache
def _flat_class(count: int) -> type[_Flat]:
    """Return a class whose forward has that many parameters, which the tracer counts."""
    names = ", ".join(f"x{i}" for i in range(count))
    scope: dict[str, Any] = {"call": call_flat}
    exec(f"def forward(self, {names}): return call(self.region, self.given, self.gave, [{names}])", scope)
    return type("Flat", (_Flat,), {"forward": scope["forward"]})


def _trace(call: Call) -> Program:
    assert call.gave is not None
    flat = _flat_class(len(call.given.tensors))(call.module, call.given, call.gave)
    examples = [
        torch.empty(filled(spec.shape), dtype=spec.dtype, device="meta") for spec in call.given.tensors
    ]  # only shapes matter
    return trace(flat, examples)
