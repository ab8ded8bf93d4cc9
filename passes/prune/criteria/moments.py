"""Second moments of what every reader reads and of what its output is worth: a layer's loss as a quadratic form.

    loss of changing W by D, per sample  =  T/2 sum over g of tr(G_g D_g H_g D_g^T)

    H = E[(x - mean)(x - mean)^T]   [g, J, J]       x: what one output position reads, see ``compiler.patches``
    G = E[d d^T]                    [g, O/g, O/g]   d: the loss's gradient at one output position
    T                               output positions per sample

This is the Kronecker-factored Gauss-Newton matrix (Martens and Grosse 2015, for convolutions Grosse and Martens 2016),
with x centred since a bias makes up for what is constant. The loss is the divergence from the model's own answers: its
curvature at the logits z [N, K] is diag(p) - p p^T = L L^T with L = diag(sqrt p) - p sqrt(p)^T, so that backpropagating
L v for random signs v gives gradients d with E[d d^T] right, and no labels are needed. An output of another shape has
no classes; there the loss is half the squared distance of all outputs, L = 1.

Where J exceeds ``WIDEST``, or there are fewer samples than J, so that H would be singular, kernel positions are taken
for uncorrelated and alike: H is [g, C, C], over channels alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.utils import _pytree

from ....compiler.interpreter import Interpreter
from ....compiler.ops import Call, normalise
from ....compiler.patches import Positions, channel_axis, draw, gram, groups_of, patches
from ....compiler.program import Program
from ....compiler.shapes import shape_of
from .base import Context
from .gradients import differentiable
from .running import Reader, private, readers

WIDEST: Final = 4608
"""Largest J for which all pairs of inputs are looked at: a 3x3 kernel over 512 channels."""
SAMPLES: Final = 20_000
"""Output positions per layer that are looked at, spread evenly over all images."""
CHUNK: Final = 1 << 12
"""Positions that are multiplied at a time, in the precision of the model."""


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of a reader; float64."""

    reader: Reader
    call: Call
    inputs: Tensor
    """H."""
    outputs: Tensor
    """G."""
    positions: int
    """T."""


class _Sums:
    """Sums over the samples of one reader, about the mean of the first ones.

    Then little cancels, and single precision is enough for the products of few samples.
    """

    def __init__(self, reader: Reader, call: Call, samples: int) -> None:
        self.reader, self.call = reader, call
        self.groups = groups_of(call)
        columns = call["weight"][0].numel()
        self.wide = columns > min(WIDEST, samples)
        size = call["weight"].shape[1] if self.wide else columns
        self.squares = torch.zeros(self.groups, size, size, dtype=torch.float64)
        self.sum = torch.zeros(self.groups, size, dtype=torch.float64)
        self.centre = torch.zeros(self.groups, 1, size)
        self.samples = self.gradients = self.positions = 0
        self.outputs = torch.zeros(self.groups, *[len(call["weight"]) // self.groups] * 2, dtype=torch.float64)

    def read(self, x: Tensor, at: Positions) -> None:
        """Add what is read at some positions."""
        found = patches(self.call, x, at)  # [S, g, J]
        if self.wide:
            found = found.unflatten(2, (self.squares.shape[1], -1)).movedim(3, 1).flatten(0, 1)
        found = found.transpose(0, 1)
        if not self.samples:
            self.centre = found.mean(1, keepdim=True)
        for part in found.split(CHUNK, 1):
            moved = part - self.centre
            self.squares += gram(moved)
            self.sum += moved.sum(1, dtype=torch.float64)
        self.samples += found.shape[1]

    def wrote(self, gradient: Tensor) -> None:
        """Add the gradients at all positions of a batch's output."""
        axis = channel_axis(self.call, gradient)
        flat = gradient.movedim(axis, -1).flatten(0, -2)
        self.positions = len(flat) // len(gradient)
        grouped = flat.unflatten(1, (self.groups, -1)).transpose(0, 1)
        self.outputs += (grouped.transpose(1, 2) @ grouped).double()
        self.gradients += len(flat)

    def moments(self) -> Moments:
        off = self.sum / self.samples
        inputs = self.squares / self.samples - off[:, :, None] * off[:, None]
        return Moments(self.reader, self.call, inputs, self.outputs / max(self.gradients, 1), self.positions)


def moments(context: Context) -> list[Moments]:
    """Return the moments of every reader that is a layer of its own, in graph order.

    Raises:
        CompilerError: The model does not run backwards.
    """
    program = private(context.program)
    images = sum(len(batch.inputs[0]) for batch in context.batches)
    sums: dict[fx.Node, _Sums] = {}
    for reader in readers(context.program, context.deps):
        call = normalise(program, reader.node)
        if call.key in ("conv", "linear") and call.module is not None:
            output = torch.empty(shape_of(reader.node), device="meta")
            positions = output[0].numel() // output.shape[channel_axis(call, output)]
            sums[reader.node] = _Sums(reader, call, min(SAMPLES, images * positions))
    generator = torch.Generator().manual_seed(context.seed)
    for number, batch in enumerate(context.batches, start=1):
        context.progress(f"measuring curvature: batch {number} of {len(context.batches)}")
        given = [x.to(spec.dtype).clone() for x, spec in zip(batch.inputs, program.inputs, strict=True)]
        limit = -(-SAMPLES * len(given[0]) // images)
        with differentiable():
            run = _Recording(program, sums, limit, generator)
            value = _projected(run.run(*given), generator)
            if value is None:
                continue
            found = torch.autograd.grad(value, list(run.outputs.values()), allow_unused=True, materialize_grads=True)
        for node, gradient in zip(run.outputs, found, strict=True):
            sums[node].wrote(gradient)
    return [one.moments() for one in sums.values()]


def _projected(output: Any, generator: torch.Generator) -> Tensor | None:
    """Return z . (L v) for random signs v, to be differentiated; see the module. ``None`` where no reader matters."""
    real = [x for x in _pytree.tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]
    if not real:
        return None
    if real[0].ndim == 2 and real[0].shape[1] > 1:
        logits = real[0]
        p = logits.detach().softmax(1)
        v = _signs(logits, generator)
        direction = p.sqrt() * v - p * (p.sqrt() * v).sum(1, keepdim=True)
        return (logits * direction).sum()
    return torch.stack([(x * _signs(x, generator)).sum() for x in real]).sum()


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, like.shape, generator=generator).to(like.dtype) * 2 - 1


class _Recording(Interpreter):
    """Runs a program, noting what readers read and write."""

    def __init__(self, program: Program, sums: dict[fx.Node, _Sums], limit: int, generator: torch.Generator) -> None:
        super().__init__(program)
        self.sums, self.limit, self.draws = sums, limit, generator
        self.outputs: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        value: Any = getattr(self, n.op)(n.target, args, kwargs)
        if n in self.sums:
            sums = self.sums[n]
            at = draw(value.shape, channel_axis(sums.call, value), self.limit, self.draws)
            sums.read((args[0] if args else kwargs["input"]).detach(), at)
            self.outputs[n] = value if value.requires_grad else value.requires_grad_()
            value = value.clone()  # what follows may overwrite it
        return value
