"""Running the program on calibration data, and what the readers of channels read.

A *reader* is a convolution or linear layer that uses its input channels up; a channel is removed by removing the
readers' weights for it, so what a reader reads is all that a channel contributes. Depthwise convolutions pass their
channels on, and their own readers speak for them.

Everything runs in evaluation mode on a private copy: the user's module keeps its flags, buffers and gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ....compiler.dependency import ChannelDependencies, Classes
from ....compiler.interpreter import Interpreter
from ....compiler.ops import Call, normalise
from ....compiler.program import InputSpec, Program, referenced_tree
from ....compiler.shapes import concrete, is_tensor, shape_of
from ...edit import copy_layer
from .base import Context


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that uses up the channels ``classes`` [C], which stand along ``axis`` of its input."""

    node: fx.Node
    input: fx.Node
    axis: int
    classes: Classes


Visit = Callable[[Reader, Tensor], Tensor]
"""Shown what a reader reads; returns what it is given instead."""


def readers(program: Program, deps: ChannelDependencies) -> tuple[Reader, ...]:
    """Find all readers, in graph order."""
    found: list[Reader] = []
    for node in program.graph.nodes:
        call = normalise(program, node) if node.op.startswith("call_") else None
        if call is None or call.key not in ("conv", "conv_transpose", "linear") or not is_tensor(call.input):
            continue
        axis = _channel_axis(call)
        factor = deps.labels_of(call.input).factor_at(axis)
        if factor is not None and not _passes_on(call):
            # Along the factor's other axes the classes are the same: the layer's rule has tied them.
            atoms = np.moveaxis(factor.atoms, factor.axes.index(axis), 0)
            classes = deps.class_of[atoms.reshape(len(atoms), -1)[:, 0]]
            found.append(Reader(node, call.input, axis, classes))
    return tuple(found)


def _channel_axis(call: Call) -> int:
    shape = shape_of(call.input)
    if call.key == "linear":
        return len(shape) - 1
    weight = call["weight"]
    rank = len(shape_of(weight)) if isinstance(weight, fx.Node) else weight.ndim
    return len(shape) - rank + 1


def _passes_on(call: Call) -> bool:
    """Tell whether a convolution has one input or one output channel per group."""
    groups = 1 if call.key == "linear" else int(concrete(call["groups"]))
    axis = _channel_axis(call)
    return groups > 1 and groups in (shape_of(call.input)[axis], shape_of(call.node)[axis])


def private(program: Program, leaf: Callable[[Tensor], Tensor] = Tensor.detach) -> Program:
    """Return the program in evaluation mode over layers of its own, on the CPU, half precision as float32.

    Args:
        program: Stays as it is; memory of its parameters is shared where nothing had to be converted.
        leaf: What a parameter becomes, called once per parameter.
    """
    made: dict[int, Any] = {}

    def tensor_of(value: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor | None:
        if value is not None and id(value) not in made:
            made[id(value)] = change(value.detach().to("cpu", _computed_in(value.dtype)))
        return None if value is None else made[id(value)]

    def layer_of(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            layer = made[id(module)] = copy_layer(module)
            layer.training = False
            registries = layer.__dict__
            registries["_parameters"] = {k: tensor_of(v, leaf) for k, v in module._parameters.items()}
            registries["_buffers"] = {k: tensor_of(v, torch.clone) for k, v in module._buffers.items()}
            registries["_modules"] = {k: v and layer_of(v) for k, v in module._modules.items()}
        return made[id(module)]

    root = layer_of(referenced_tree(program.root, program.graph))
    inputs = tuple(InputSpec(i.name, i.shape, _computed_in(i.dtype)) for i in program.inputs)
    return replace(program, root=root, inputs=inputs)


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def run(program: Program, inputs: tuple[Tensor, ...], at: dict[fx.Node, Reader], visit: Visit) -> Any:
    """Run a private program; returns its output."""
    given = [x.to(spec.dtype).clone() for x, spec in zip(inputs, program.inputs, strict=True)]
    return _Reading(program, at, visit).run(*given)


class _Reading(Interpreter):
    def __init__(self, program: Program, at: dict[fx.Node, Reader], visit: Visit) -> None:
        super().__init__(program)
        self.at, self.visit = at, visit

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        reader = self.at.get(n)
        if reader is not None:
            if args:
                args = (self.visit(reader, args[0]), *args[1:])
            else:
                kwargs = {**kwargs, "input": self.visit(reader, kwargs["input"])}
        return getattr(self, n.op)(n.target, args, kwargs)


def activations(context: Context, visit: Callable[[Reader, Tensor], None]) -> None:
    """Show everything that is read, batch by batch: each tensor once, however many layers read it."""
    first: dict[tuple[fx.Node, int], Reader] = {}
    for reader in readers(context.program, context.deps):
        first.setdefault((reader.input, reader.axis), reader)

    def show(reader: Reader, x: Tensor) -> Tensor:
        visit(reader, x)
        return x

    program = private(context.program)
    at = {reader.node: reader for reader in first.values()}
    with torch.no_grad():
        for number, batch in enumerate(context.batches, start=1):
            context.progress(f"looking at activations: batch {number} of {len(context.batches)}")
            run(program, batch.inputs, at, show)
