"""Gradients on calibration data: of the weights, and of a mask over the channels.

The loss is the cross-entropy of the first output [N, K]: with the labels, or else with the model's own top-1 as the
label. An output of any other shape has no classes; then it is the sum of squares of all outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree

from ....compiler.errors import CompilerError, SourceError
from ....compiler.shapes import shape_of
from ...calibration import Batch
from .base import Context
from .running import Reader, private, readers, run
from .weights import is_weight


def loss_of(output: Any, labels: Tensor | None) -> Tensor:
    """Return what gradients are taken of, summed over the samples; see the module.

    Raises:
        SourceError: There are labels that the model has no output for.
        CompilerError: The output holds no real tensor.
    """
    real = [x for x in _pytree.tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
    if not real:
        raise CompilerError("the model's output holds no real numbers, so there is nothing to take gradients of")
    logits = real[0]
    if logits.ndim != 2 or logits.shape[1] < 2:
        return torch.stack([x.square().sum() for x in real]).sum()
    if labels is None:
        labels = logits.detach().argmax(1)
    elif int(labels.max()) >= logits.shape[1] or int(labels.min()) < 0:
        raise SourceError(
            f"the labels of calibration data go up to {int(labels.max())}, and the model has {logits.shape[1]} outputs",
            hint="leave the labels out: the model's own answers are used then",
        )
    return F.cross_entropy(logits, labels, reduction="sum")


@contextmanager
def differentiable() -> Generator[None]:
    """Take gradients inside, whatever the caller has switched off.

    Raises:
        CompilerError: The model does not run backwards.
    """
    with torch.inference_mode(False), torch.enable_grad():
        try:
            yield
        except RuntimeError as error:
            raise CompilerError(
                f"gradients of the model cannot be taken: {str(error).splitlines()[0]}",
                hint="a criterion without gradients: l2, fpgm, mean-activation",
            ) from error


def weight_gradients(context: Context) -> Iterator[Mapping[str, Tensor]]:
    """Yield, batch by batch, w dL/dw of every weight, L the mean loss of the batch.

    Returns:
        Name -> a tensor of the weight's shape. Weights that the loss does not depend on are left out.
    """
    with differentiable():
        program = private(context.program, lambda p: p.requires_grad_(p.is_floating_point()))
    names = dict.fromkeys(use.name for use, _ in context.slices() if is_weight(use))
    tensors: dict[str, Tensor] = {name: program.attribute(name) for name in names}
    weights = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    for number, batch in enumerate(context.batches, start=1):
        context.progress(f"taking gradients: batch {number} of {len(context.batches)}")
        with differentiable():
            loss = loss_of(run(program, batch.inputs, {}, lambda reader, x: x), batch.labels) / len(batch.inputs[0])
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        pairs = zip(weights.items(), found, strict=True)
        yield {name: (weight * gradient).detach() for (name, weight), gradient in pairs if _used(gradient)}


def _used(gradient: Tensor | None) -> bool:
    """Tell whether there is one; torch's own annotation leaves out that there may be none."""
    return gradient is not None


def mask_gradients(context: Context) -> Iterator[Tensor]:
    """Yield, batch by batch, the gradient of each sample's loss with respect to a mask over the channel classes.

        h[n, c] = sum over readers, positions of x[n, c, ...] dL_n / dx[n, c, ...]

    Returns:
        Float64 [N, classes]; 0 for classes that nobody reads.
    """
    with differentiable():
        program = private(context.program)
    found = readers(context.program, context.deps)
    at = {reader.node: reader for reader in found}
    classes = {reader: torch.from_numpy(reader.classes) for reader in found}
    batch_size = context.program.inputs[0].shape[:1]
    # A reader whose first axis is not the batch mixes samples there: one at a time, they keep apart.
    apart = any(shape_of(reader.input)[:1] != batch_size or reader.axis == 0 for reader in found)
    batches = [part for batch in context.batches for part in (_samples(batch) if apart else [batch])]
    for number, batch in enumerate(batches, start=1):
        context.progress(f"taking gradients: batch {number} of {len(batches)}")
        with differentiable():
            gates = _Gates(classes, len(batch.inputs[0]), context.classes)
            loss = loss_of(run(program, batch.inputs, at, gates), batch.labels)
            if loss.requires_grad:
                torch.autograd.grad(loss, gates.switch, allow_unused=True)
        yield gates.total


def _samples(batch: Batch) -> list[Batch]:
    labels = batch.labels
    return [
        Batch(tuple(x[n : n + 1] for x in batch.inputs), None if labels is None else labels[n : n + 1])
        for n in range(len(batch.inputs[0]))
    ]


class _Gates:
    """Gates in front of all readers; what they tell in a backward pass is summed per sample and class."""

    def __init__(self, classes: Mapping[Reader, Tensor], samples: int, count: int) -> None:
        self.classes = classes
        self.total = torch.zeros(samples, count, dtype=torch.float64)
        self.switch = torch.zeros((), requires_grad=True)
        """What gradients are asked for: every gate depends on it, so every gate is run."""

    def __call__(self, reader: Reader, x: Tensor) -> Tensor:
        """Put a gate in front of a reader."""
        return _Gate.apply(x, self.switch, partial(self._add, reader))

    def _add(self, reader: Reader, product: Tensor) -> None:
        kept = (reader.axis,) if len(self.total) == 1 else (0, reader.axis)
        rest = [axis for axis in range(product.ndim) if axis not in kept]
        per_sample = (product.sum(rest) if rest else product).double()
        self.total.index_add_(1, self.classes[reader], per_sample.reshape(len(self.total), -1))


class _Gate(torch.autograd.Function):
    """The identity, which tells the product of input and gradient. Keeps what the reader itself keeps, no copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, switch: Tensor, tell: Callable[[Tensor], None]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tell = tell
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,) = ctx.saved_tensors
        ctx.tell(x * gradients[0])
        return gradients[0], torch.zeros(()), None
