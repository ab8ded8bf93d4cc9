"""Back into the model: pruned layers take the places of the original ones in a copy, among its own Python code."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ...compiler.errors import CaptureError, CompilerError
from ...compiler.program import Program
from ...compiler.recording import Call, record


def write_back(model: nn.Module, original: Program, compact: Program) -> nn.Module:
    """Return a copy of the model in which the layers and tensors of a rewritten program stand in place of its own.

    Wherever the model holds them: under several names, in lists of its own.
    """
    copies: dict[int, Any] = {}
    replaced: dict[int, Any] = {}
    for old, new in (*_layers(original, compact), *_tensors(original, compact)):
        if new is not old:
            replaced[id(old)] = copy.deepcopy(new, copies)
    return copy.deepcopy(model, replaced)


def _layers(original: Program, compact: Program) -> Iterator[tuple[nn.Module, nn.Module]]:
    left = {str(node.target) for node in compact.graph.nodes if node.op == "call_module"}
    for node in original.graph.nodes:
        if node.op == "call_module" and node.target in left:
            yield original.owner(node.target), compact.owner(node.target)


def _tensors(original: Program, compact: Program) -> Iterator[tuple[Tensor, Tensor]]:
    now = dict(compact.tensors())
    for name, tensor in original.tensors():
        if name in now:
            yield tensor, now[name]


def check_glue(model: nn.Module, before: Call, inputs: Sequence[Any]) -> None:
    """Run the pruned model, and put right what its blocks state about their own width (``out_channels``).

    Raises:
        CompilerError: It does not run.
    """
    try:
        after = record(model, inputs)
    except CaptureError as error:
        raise CompilerError(
            f"the model's own code does not go along with the pruned layers: {error.what}",
            where=error.where,
            hint="exclude the layers whose widths it counts on: prune{macs=0.5 exclude=backbone.fpn.*}",
        ) from error
    given, now = _widths(before), _widths(after)
    for path, module in model.named_modules():
        stated = module.__dict__.get("out_channels")
        if isinstance(stated, int) and given.get(path) == {stated} and len(now.get(path, ())) == 1:
            module.__dict__["out_channels"] = next(iter(now[path]))


def _widths(call: Call) -> dict[str, set[int]]:
    """Return the sizes along axis 1 of all that submodules give, by path."""
    found: dict[str, set[int]] = {}
    waiting = [call]
    while waiting:
        current = waiting.pop()
        waiting += current.parts
        sizes = found.setdefault(current.path, set())
        if current.gave is not None:
            sizes |= {spec.shape[1] if len(spec.shape) > 1 else -1 for spec in current.gave.tensors}
    return found
