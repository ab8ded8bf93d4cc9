"""``reconstruct-blocks``: all layers of a block are refitted together, so that the block gives what it gave.

    minimise over W_1, b_1, ... of a segment    sum of |f(x; W, b) - y[K]|^2  /  sum of |y[K] - mean y[K]|^2

x is what enters the segment in the pruned program, refitted up to here, and y what leaves it in the dense program. A
layer alone, as in ``reconstruct``, can only undo the damage in front of it; two together can also divide the work anew
among the channels that are left. The problem is a nonlinear least-squares one, without labels and without the loss that
the network was trained with. It is solved by L-BFGS on all data at once, as far as ``samples`` positions go, in
coordinates in which the curvature of every layer alone is the identity:

    W = W0 + diag(1/|a|) V L^-1      b = b0 + c/|a| - (W - W0) mean(x)      cov(x) + ridge = L L^T

x: patches [S, g, J] that the layer reads at the start; a: scale of the norm behind it; V, c start at 0. One batch in
``HELD_OUT`` is left out, and where the error on it rises, the last step is taken back and the segment is done.

Sources: Nocedal and Wright, Numerical Optimization, section 7.2 (L-BFGS); Li et al., BRECQ, ICLR 2021, section 3.2
(blocks as what is to be reconstructed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ...compiler.collection import no_collection
from ...compiler.errors import OptionError
from ...compiler.patches import channel_axis, draw, gram, groups_of, patches
from ...compiler.program import Program
from ...compiler.shapes import shape_of
from ..base import PassResult, Remark, RemarkKind
from ..edit import Edit
from .base import Compensation
from .layers import Pairs, Refittable, affine, shift_output
from .segments import Segment, segments
from .sequential import Sequential
from .stepwise import call

RIDGE: Final = 1e-3
"""Added to the diagonal of a layer's covariance, relative to its mean."""
COVARIANCE: Final = 10_000
"""Output positions per layer that the covariance is taken over."""
WIDEST: Final = 2500
"""Inputs per output beyond which only their variances are looked at: solving with L would cost more than the block."""
HELD_OUT: Final = 8
ITERATIONS: Final = 5
"""Of L-BFGS, between two looks at what is held out."""
SMALLEST_SCALE: Final = 1e-6


@dataclass(frozen=True)
class ReconstructBlocks(Compensation):
    """Refit the layers of every block together."""

    name: ClassVar[str] = "reconstruct-blocks"

    iterations: int = 20
    """Of L-BFGS per block, at most."""
    samples: int = 50_000
    """Output positions per block that are enough to fit to; batches beyond are not looked at."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: A value is out of range.
        """
        for name, number in (("iterations", self.iterations), ("samples", self.samples)):
            if number < 1:
                raise OptionError(f"{name}={number} is out of range", hint=f"{name} is a whole number from 1 up")

    @no_collection()
    def run(self, program: Program) -> PassResult:
        """Refit; see :class:`~..base.Pass`."""
        compared, batches, edit = self.compared(), self.batches(program), Edit(program)
        pairs = Pairs(edit.program, compared.dense, compared.plan)
        parts = segments(pairs, list(pairs.refittable(sums=False)))
        remarks = [Remark(RemarkKind.MISSED, self.name, where, why) for where, why in pairs.refused.items()]
        if not parts:
            nothing = Remark(RemarkKind.MISSED, self.name, "", "nothing was refitted: no block reads pruned channels")
            return PassResult(program, changed=False, stats={"blocks": 0}, remarks=(*remarks, nothing))
        part_of = {node: part for part in parts for node in part.nodes}
        begun: set[Segment] = set()
        errors: list[tuple[float, float]] = []
        block = partial(_Block, edit, samples=self.samples, seed=self.seed)

        def refit(node: fx.Node) -> None:
            part = part_of.get(node)
            if part is None or part in begun:
                return
            begun.add(part)
            self.progress(f"refitting {part.name} ({len(begun)} of {len(parts)} blocks)")
            entering = {read: both.now.take(read) for read in part.reads}
            wanted = [part.channels.of(y) for y in both.dense.take(part.dense_end)]
            if not all(map(_is_finite, [*wanted, *(value for values in entering.values() for value in values)])):
                reason = "not refitted: there are infinities in what enters or is to leave"
                remarks.append(Remark(RemarkKind.MISSED, self.name, part.name, reason))
                return
            before, after = block(part, entering, wanted).refit(self.iterations)
            errors.append((before, after))
            what = f"refitted together: relative error of what the block gives {before:.3g} -> {after:.3g}"
            remarks.append(Remark(RemarkKind.APPLIED, self.name, part.name, what))

        both = Sequential(
            edit, compared, batches, [r for p in parts for r in p.reads], [p.dense_end for p in parts], refit
        )
        figures = both.run(program)
        means = [sum(each) / len(errors) for each in zip(*errors, strict=True)] or [0.0, 0.0]
        stats = {"blocks": len(errors), "block_error_before": means[0], "block_error_after": means[1], **figures}
        return PassResult(edit.finish(), changed=True, stats=stats, remarks=tuple(remarks))


def _is_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())


class _Coordinates:
    """One layer, as a function of V and c."""

    def __init__(self, edit: Edit, layer: Refittable, inputs: Sequence[Tensor], generator: torch.Generator) -> None:
        self.layer, self.node = layer, layer.call.node
        old: Any = edit.program.owner(layer.path)
        self._old, groups = old, groups_of(layer.call)
        self._weight = old.weight.detach().reshape(groups, -1, old.weight[0].numel())
        shape = list(shape_of(layer.call.node))
        images = sum(map(len, inputs))
        read: list[Tensor] = []
        for x in inputs:
            shape[0] = len(x) * shape_of(layer.call.node)[0] // shape_of(layer.call.input)[0]
            axis = channel_axis(layer.call, torch.empty(shape, device="meta"))
            read.append(patches(layer.call, x, draw(shape, axis, -(-COVARIANCE * len(x) // images), generator)))
        found = torch.cat(read)
        self._mean = found.mean(0)
        moved = (found - self._mean).transpose(0, 1)
        self._diagonal = found.shape[2] > WIDEST
        spread = moved.square().mean(1).double()  # [g, J]
        spread += RIDGE * spread.mean(1, keepdim=True) + 1e-30
        if self._diagonal:
            self._root = spread.sqrt().to(old.weight.dtype)
        else:
            covariance = gram(moved).double() / moved.shape[1]
            covariance.diagonal(dim1=1, dim2=2).copy_(spread)
            self._root = torch.linalg.cholesky(covariance).to(old.weight.dtype)
        scale = affine(layer.norm, len(layer.rows))[0].abs()
        inverse = torch.where(scale > SMALLEST_SCALE, scale.reciprocal(), 0.0)
        self._rows = inverse.reshape(groups, -1, 1).to(old.weight.dtype)
        self.v = torch.zeros_like(self._weight).requires_grad_()
        self.c = torch.zeros_like(self._weight[..., 0]).requires_grad_()

    def change(self) -> tuple[Tensor, Tensor]:
        """Return W - W0 [g, O/g, J] and b - b0 [g, O/g]."""
        if self._diagonal:
            weight = self._rows * self.v / self._root[:, None]
        else:
            weight = self._rows * torch.linalg.solve_triangular(self._root, self.v, upper=False, left=False)
        return weight, self._rows[..., 0] * self.c - torch.einsum("goj,gj->go", weight, self._mean)

    def run(self, change: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        """Run the layer, changed."""
        weight, bias = (self._weight + change[0]).reshape(self._old.weight.shape), change[1].flatten()
        if self._old.bias is not None:
            bias = self._old.bias.detach() + bias
        return torch.func.functional_call(self._old, {"weight": weight, "bias": bias}, (x,))

    def write(self, edit: Edit) -> None:
        """Give the layer what was found."""
        weight, bias = (part.detach().double() for part in self.change())
        shift_output(edit, self.layer, bias.flatten(), self._weight.double() + weight)


class _Block:
    """One segment with its data.

    Args:
        edit: Of the pruned program.
        part: The segment.
        entering: What enters, per batch.
        wanted: What is to leave, per batch.
        samples: Output positions that are enough to fit to.
        seed: Of the positions that are drawn.
    """

    def __init__(
        self,
        edit: Edit,
        part: Segment,
        entering: Mapping[fx.Node, list[Any]],
        wanted: Sequence[Tensor],
        *,
        samples: int,
        seed: int,
    ) -> None:
        self._edit, self._part, self._entering, self._wanted = edit, part, entering, wanted
        count = len(wanted)
        held = -(-count // HELD_OUT) if count > 1 else 0
        positions = wanted[0].numel() // wanted[0].shape[part.channels.axis]  # of a batch
        self._fitted = range(min(count - held, -(-samples // positions)))
        self._held = range(count - held, count) if held else range(count)
        axis = part.channels.axis
        others = [a for a in range(wanted[0].ndim) if a != axis]
        spread = [wanted[number].var(others, correction=0).mean() for number in {*self._fitted, *self._held}]
        self._spread = float(torch.stack(spread).mean().clamp_min(1e-30))
        self._inside = {layer.call.node for layer in part.layers}
        generator = torch.Generator().manual_seed(seed)
        read = self._read()
        self._layers = [_Coordinates(edit, layer, read[layer.call.node], generator) for layer in part.layers]

    def refit(self, iterations: int) -> tuple[float, float]:
        """Refit; return the relative error on what is held out before and after."""
        variables = [variable for layer in self._layers for variable in (layer.v, layer.c)]
        best = before = self._error(self._held)
        optimiser = torch.optim.LBFGS(variables, history_size=iterations, line_search_fn="strong_wolfe")

        seen: list[Tensor] = []
        loss = torch.zeros(())

        def closure() -> Tensor:
            nonlocal seen, loss
            # Every step begins where the one before ended, mostly with what was evaluated last.
            if not seen or not all(map(torch.equal, seen, variables)):
                optimiser.zero_grad()
                loss = torch.tensor(self._error(self._fitted, learn=True))
                seen = [variable.detach().clone() for variable in variables]
            return loss

        for begin in range(0, iterations, ITERATIONS):
            kept = [variable.detach().clone() for variable in variables]
            most = min(ITERATIONS, iterations - begin)
            optimiser.param_groups[0].update(max_iter=most, max_eval=2 * most)
            with torch.inference_mode(False), torch.enable_grad():
                optimiser.step(closure)
            error = self._error(self._held)
            if not error < best:
                with torch.no_grad():
                    for variable, value in zip(variables, kept, strict=True):
                        variable.copy_(value)
                break
            best = error
        if best < before:
            for layer in self._layers:
                layer.write(self._edit)
        return before**0.5, best**0.5

    def _error(self, batches: range, *, learn: bool = False) -> float:
        """Return the squared error relative to the spread of what is wanted; ``learn`` adds its gradients."""
        count = sum(self._wanted[number].numel() for number in batches)
        total = 0.0
        with torch.set_grad_enabled(learn):
            changes = [part for layer in self._layers for part in layer.change()]
        leaves = [part.detach().requires_grad_(learn) for part in changes]
        gradients = [torch.zeros_like(leaf) for leaf in leaves]
        given = {layer.node: (leaves[2 * i], leaves[2 * i + 1]) for i, layer in enumerate(self._layers)}
        for number in batches:
            with torch.set_grad_enabled(learn):
                off = F.mse_loss(self._run(number, given), self._wanted[number], reduction="sum")
                off = off / (count * self._spread)
            if learn:  # of the leaves only: what else the segment holds is not to be touched
                for sum_, gradient in zip(gradients, torch.autograd.grad(off, leaves), strict=True):
                    sum_ += gradient
            total += float(off.detach())
        if learn:
            torch.autograd.backward(changes, gradients)
        return total

    def _read(self) -> dict[fx.Node, list[Tensor]]:
        """Return what the layers read at the start, per batch that is fitted."""
        found: dict[fx.Node, list[Tensor]] = {layer.call.node: [] for layer in self._part.layers}

        def note(node: fx.Node, x: Tensor) -> None:
            found[node].append(x)

        with torch.no_grad():
            for number in self._fitted:
                self._run(number, {}, note)
        return found

    def _run(
        self,
        number: int,
        changes: Mapping[fx.Node, tuple[Tensor, Tensor]],
        note: Callable[[fx.Node, Tensor], None] = lambda node, x: None,
    ) -> Tensor:
        """Run the segment on one batch, some layers changed."""
        values: dict[fx.Node, Any] = {node: entering[number] for node, entering in self._entering.items()}
        layers = {layer.node: layer for layer in self._layers} if changes else {}
        for node in self._part.nodes:
            given: Any = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            args, kwargs = given
            if node in self._inside:
                note(node, args[0] if args else kwargs["input"])
            if node in changes:
                values[node] = layers[node].run(changes[node], args[0] if args else kwargs["input"])
            else:
                values[node] = call(self._edit.program, node, args, kwargs)
        return values[self._part.end]
