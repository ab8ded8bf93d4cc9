"""What a program costs as a function of which channels stay, fast enough to search with, and open to a solver.

The elements of a tensor are the product of its axes' kept sizes (for the weight of a grouped convolution: the sum of
such products over the groups), and a layer's MACs are the elements that it computes times those that each is summed
over. So every cost is a sum of products of *counts*, numbers of kept channels along some axis:

    cost = fixed + sum_p coefficient_p * counts[rows[p, 0]] * counts[rows[p, 1]] * ...
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from .cost import Cost, batch_of, products, weighted_calls
from .dependency import ChannelDependencies
from .labels import Factor, squeeze_constant
from .ops import Call
from .program import Program
from .shapes import shape_of

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Products:
    """A sum of products of counts."""

    rows: Ints
    """[products, factors]: which counts are multiplied; the last count is always 1 and fills the rows up."""
    coefficients: Floats
    """[products]."""
    fixed: float = 0.0

    def __call__(self, counts: npt.NDArray[np.int64] | Floats) -> float:
        """Return the sum for these counts."""
        return float((counts[self.rows].prod(axis=1) * self.coefficients).sum()) + self.fixed


@dataclass(frozen=True, eq=False)
class LayerProducts:
    """The MACs of one convolution, linear layer or matrix product."""

    name: str
    rows: Ints
    """[products, factors], as in :class:`Products`."""
    reads: Bools
    """[products, factors]: which factors are channels that are summed over; the others are channels that come out."""
    coefficients: Floats
    """[products]: MACs per sample."""
    writes: int | None
    """Count of the channels that come out, where it is one."""
    positions: int
    """Positions at which they come out, per sample."""


class CostModel:
    """Params, MACs and bytes of a program as functions of which channel classes are kept."""

    def __init__(self, program: Program, deps: ChannelDependencies) -> None:
        self._deps = deps
        self._arrays: list[Ints] = []
        self._known: dict[bytes, int] = {}
        self._slices: dict[str, dict[int, Ints]] = {}
        for use in deps.slices:
            self._slices.setdefault(deps.shared.get(use.name, use.name), {}).setdefault(use.axis, use.atoms)
        weights = list(self._weights(program))
        layers = [*self._weighted(program), *self._multiplied(program)]
        one = len(self._arrays)
        self._bounds = np.cumsum([0, *map(len, self._arrays)])[:-1].astype(np.int64)
        self._classes = np.concatenate(self._arrays) if self._arrays else np.empty(0, dtype=np.int64)
        rows = _table([row for row, *_ in weights], one)
        figures = np.array([figures for _, *figures in weights], dtype=np.float64).reshape(-1, 3)
        elements, params, stored = figures.T
        self.params = Products(rows, elements * params)
        self.bytes = Products(rows, elements * stored)
        batch = batch_of(program)
        self.layers = tuple(layer.finished(one, batch) for layer in layers)
        """Those whose MACs depend on channels, and those whose do not."""
        width = max((layer.rows.shape[1] for layer in self.layers), default=1)
        tables = [layer.rows for layer in self.layers]
        padded = [np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=one) for rows in tables]
        self.macs = Products(
            np.concatenate([np.empty((0, width), dtype=np.int64), *padded]),
            np.concatenate([np.empty(0), *(layer.coefficients for layer in self.layers)]),
        )

    def _count(self, atoms: Ints) -> int:
        return self._count_classes(self._deps.class_of[atoms.ravel()])

    def _count_classes(self, classes: Ints) -> int:
        key = classes.tobytes()
        if key not in self._known:
            self._known[key] = len(self._arrays)
            self._arrays.append(classes)
        return self._known[key]

    def _weights(self, program: Program) -> Iterator[tuple[list[int], int, int, int]]:
        """Yield products of every tensor: counts, what they are multiplied by, whether a parameter, bytes."""
        done: set[int] = set()
        for name, tensor in program.tensors():
            if id(tensor) in done:
                continue
            done.add(id(tensor))
            axes = self._slices.get(name, {})
            rest = math.prod(size for axis, size in enumerate(tensor.shape) if axis not in axes)
            for row in self._rows(axes):
                yield row, rest, int(isinstance(tensor, torch.nn.Parameter)), tensor.element_size()

    def _rows(self, axes: Mapping[int, Ints]) -> list[list[int]]:
        """Return the products that make up the elements of a tensor: one, or one for each group of a convolution."""
        grouped = _grouped(axes)
        if grouped is None:
            return [[self._count(atoms) for atoms in axes.values()]]
        rows = axes[0].reshape(len(grouped), -1)
        return [[self._count(rows[g]), self._count(grouped[g])] for g in range(len(grouped))]

    def _weighted(self, program: Program) -> Iterator[_Layer]:
        for call, positions in weighted_calls(program):
            if not positions:  # in training only
                continue
            weight, name = call["weight"], call.owner or call.node.name
            shape = shape_of(weight) if isinstance(weight, fx.Node) else tuple(weight.shape)
            axes = self._axes_of(call)
            grouped = _grouped(axes)
            if grouped is not None:
                # Besides channels, something along the batch's axis may go: heads that were merged with it.
                channel = len(shape_of(call.node)) - len(shape) + 1
                beside = [f for f in self._deps.labels_of(call.node).factors if channel not in f.axes]
                rest = positions * math.prod(shape[2:]) // math.prod(f.atoms.size for f in beside)
                counts = [self._count(f.atoms) for f in beside]
                rows = [[*row, *counts] for row in self._rows(axes)]
                reads = [call.key == "conv_transpose", call.key != "conv_transpose", *[False] * len(counts)]
                yield _Layer(name, rows, [reads] * len(rows), [rest] * len(rows), None, positions)
                continue
            # Everything that the layer computes (for a transposed convolution: reads), times the other axis.
            outside = call.input if call.key == "conv_transpose" else call.node
            kept, rest = self._elements(outside)
            other = axes.get(1)
            row = [*kept, *([self._count(other)] if other is not None else [])]
            rest *= math.prod(shape[2:]) * (1 if other is not None else shape[1])
            transposed = call.key == "conv_transpose"
            reads = [transposed] * len(kept) + [not transposed] * (other is not None)
            writes = [count for count, read in zip(row, reads, strict=True) if not read]
            yield _Layer(name, [row], [reads], [rest], writes[0] if len(writes) == 1 else None, positions)

    def _axes_of(self, call: Call) -> Mapping[int, Ints]:
        """Return the atoms along the axes of a weight, whether it is stored or computed."""
        weight = call["weight"]
        if isinstance(weight, fx.Node) and weight.op != "get_attr":
            return {f.axes[0]: f.atoms for f in self._deps.labels_of(weight).factors if len(f.axes) == 1}
        name = str(weight.target) if isinstance(weight, fx.Node) else f"{call.owner}.weight"
        return self._slices.get(self._deps.shared.get(name, name), {})

    def _multiplied(self, program: Program) -> Iterator[_Layer]:
        for product in products(program):
            varying = self._varying(product.operand)
            if product.gives:
                kept, rest = self._elements(product.node)
            else:  # what is not summed over of the operand (heads that go as wholes)
                rows = [f for f in varying if not {*f.axes} & {*product.summed}]
                kept = [self._count_classes(f.atoms.ravel()) for f in rows]
                rest = product.elements // math.prod(f.atoms.size for f in rows)
            summed: list[int] = []
            for axis in product.summed:
                inner = next((f for f in varying if axis in f.axes), None)
                if inner is None:
                    rest *= shape_of(product.operand)[axis]
                else:  # over all rows at once, where it stands in rows (heads)
                    summed.append(self._count_classes(inner.atoms.ravel()))
                    rest //= math.prod(shape_of(product.operand)[a] for a in inner.axes if a != axis)
            reads = [False] * len(kept) + [True] * len(summed)
            name = product.node.name
            yield _Layer(name, [[*kept, *summed]], [reads], [rest], kept[0] if len(kept) == 1 else None, 1)

    def _varying(self, node: fx.Node) -> list[Factor]:
        """Return the classes of a tensor over the axes along which they vary; within whole cells they do not."""
        factors = self._deps.labels_of(node).factors
        found = [squeeze_constant(Factor(f.axes, self._deps.class_of[f.atoms])) for f in factors]
        return [f for f in found if f is not None]

    def _elements(self, node: fx.Node) -> tuple[list[int], int]:
        """Return the counts whose product, times the number returned with them, is how many elements a tensor keeps."""
        factors = self._deps.labels_of(node).factors
        covered = {axis for factor in factors for axis in factor.axes}
        rest = math.prod(size for axis, size in enumerate(shape_of(node)) if axis not in covered)
        return [self._count(factor.atoms) for factor in factors], rest

    def counts(self, keep: Bools) -> Ints:
        """Return all counts when the classes in ``keep`` stay; the last is 1."""
        if not len(self._classes):
            return np.ones(1, dtype=np.int64)
        return np.append(np.add.reduceat(keep[self._classes].astype(np.int64), self._bounds), 1)

    def __call__(self, keep: Bools) -> Cost:
        """Return what is left when the classes in ``keep`` stay; MACs per sample."""
        counts = self.counts(keep)
        return Cost(*(round(products(counts)) for products in (self.params, self.macs, self.bytes)))


@dataclass(frozen=True, eq=False)
class _Layer:
    """A :class:`LayerProducts` before all counts are known."""

    name: str
    rows: list[list[int]]
    reads: list[list[bool]]
    rest: list[int]
    writes: int | None
    positions: int

    def finished(self, one: int, batch: int) -> LayerProducts:
        rows = _table(self.rows, one)
        reads = np.zeros(rows.shape, dtype=np.bool_)
        for row, flags in enumerate(self.reads):
            reads[row, : len(flags)] = flags
        coefficients = np.array(self.rest, dtype=np.float64) / batch
        return LayerProducts(self.name, rows, reads, coefficients, self.writes, self.positions // batch)


def _grouped(axes: Mapping[int, Ints]) -> Ints | None:
    return next((atoms for atoms in axes.values() if atoms.ndim == 2 and len(atoms) > 1), None)


def _table(rows: Sequence[Sequence[int]], one: int) -> Ints:
    width = max(map(len, rows), default=0) or 1
    return np.array([[*row, *[one] * (width - len(row))] for row in rows], dtype=np.int64).reshape(-1, width)
