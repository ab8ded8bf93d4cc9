"""The one place that counts: parameters, multiply-accumulates, bytes.

* **MACs** count convolutions, linear layers and matrix products, per sample: a weight's elements times the positions
  it is applied to (bias, normalisation, activations count nothing). Papers that say FLOPs mean MACs or 2 x MACs;
  reports offer both.
* **params** exclude buffers.
* **bytes** are those of the tensors a weights file holds, parameters and buffers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from .dependency import ChannelDependencies
from .ops import Call, normalise
from .program import Program
from .shapes import is_tensor, shape_of


@dataclass(frozen=True)
class Cost:
    """What a program costs."""

    params: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs, and its channels."""

    layer: str
    kind: str
    inputs: int
    outputs: int
    params: int
    macs: int


def measure(program: Program) -> Cost:
    """Count a whole program with inferred shapes."""
    params = nbytes = 0
    seen: set[int] = set()
    for _, tensor in program.tensors():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        nbytes += tensor.numel() * tensor.element_size()
        params += tensor.numel() if isinstance(tensor, torch.nn.Parameter) else 0
    return Cost(params, sum(c.macs for c in layer_costs(program)), nbytes)


def layer_costs(program: Program) -> tuple[LayerCost, ...]:
    """Count every convolution, linear layer and matrix product, one entry per call."""
    return tuple(
        LayerCost(
            layer=call.owner or call.node.name,
            kind=call.key,
            inputs=_channels(program, call, 1),
            outputs=_channels(program, call, 0),
            params=sum(
                int(math.prod(_dims(call.params.get(name))))
                for name in ("weight", "bias")
                if call.params.get(name) is not None
            ),
            macs=int(math.prod(_dims(call["weight"]))) * positions // _batch(program),
        )
        for call, positions in weighted_calls(program)
    ) + tuple(_products(program))


def weighted_calls(program: Program) -> Iterator[tuple[Call, int]]:
    """Yield each convolution and linear layer with the number of positions that its weight is applied to."""
    for node in program.graph.nodes:
        if node.op not in ("call_module", "call_function"):
            continue
        call = normalise(program, node)
        if call.key == "conv":
            shape, rank = shape_of(node), len(_dims(call["weight"])) - 2
            yield call, math.prod(shape[: len(shape) - rank - 1]) * math.prod(shape[len(shape) - rank :])
        elif call.key == "conv_transpose":
            shape, rank = shape_of(call.input), len(_dims(call["weight"])) - 2
            yield call, math.prod(shape[: len(shape) - rank - 1]) * math.prod(shape[len(shape) - rank :])
        elif call.key == "linear":
            yield call, math.prod(shape_of(call.input)[:-1])


def _products(program: Program) -> Iterator[LayerCost]:
    """Matrix products of two activations: [.., m, k] x [.., k, n] costs m k n each."""
    for node in program.graph.nodes:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node.op in ("call_function", "call_method") and name in ("matmul", "bmm", "mm") and is_tensor(node):
            left = node.args[0]
            assert isinstance(left, fx.Node)
            macs = math.prod(shape_of(node)) * shape_of(left)[-1]
            yield LayerCost(node.name, "matmul", 0, 0, 0, macs // _batch(program))


def _dims(weight: Any) -> tuple[int, ...]:
    if weight is None:
        return (0,)
    return shape_of(weight) if isinstance(weight, fx.Node) else tuple(weight.shape)


def _batch(program: Program) -> int:
    shape = program.inputs[0].shape if program.inputs else ()
    return max(shape[0], 1) if shape else 1


def _channels(program: Program, call: Call, axis: int) -> int:
    dims = _dims(call["weight"])
    if call.key == "conv_transpose":
        axis = 1 - axis
    return dims[axis] * (int(call.params.get("groups", 1)) if axis == 1 else 1)


class CostModel:
    """Params and MACs of a program as functions of which channel classes are kept, fast enough to search with.

    The elements of a weight are the product of its axes' kept sizes (for a grouped convolution: the sum of such
    products over the groups), so both counts follow from how many channels each axis keeps.
    """

    def __init__(self, program: Program, deps: ChannelDependencies) -> None:
        self._positions = _positions_per_tensor(program, deps.shared)
        self._terms: list[tuple[int, list[int], bool]] = []
        arrays: list[npt.NDArray[np.int64]] = []
        bounds: list[int] = [0]
        sliced: dict[str, dict[int, npt.NDArray[np.int64]]] = {}
        for use in deps.slices:
            name = deps.shared.get(use.name, use.name)
            sliced.setdefault(name, {}).setdefault(use.axis, use.atoms)

        def counted(atoms: npt.NDArray[np.int64]) -> int:
            arrays.append(deps.class_of[atoms.ravel()])
            bounds.append(bounds[-1] + atoms.size)
            return len(arrays) - 1

        params: list[int] = []
        macs: list[int] = []
        fixed_params = fixed_macs = 0
        done: set[int] = set()
        self._groups: list[tuple[int, int, int]] = []
        for name, tensor in program.tensors():
            if id(tensor) in done:
                continue
            done.add(id(tensor))
            is_param, positions = int(isinstance(tensor, torch.nn.Parameter)), self._positions.get(name, 0)
            axes = sliced.get(name, {})
            if not axes:
                fixed_params += tensor.numel() * is_param
                fixed_macs += tensor.numel() * positions
                continue
            rest = math.prod(s for a, s in enumerate(tensor.shape) if a not in axes)
            grouped = next((a for a in axes.values() if a.ndim == 2 and len(a) > 1), None)
            if grouped is None:
                self._terms.append((rest, [counted(a) for a in axes.values()], False))
            else:
                rows = axes[0].reshape(len(grouped), -1)
                self._terms.append(
                    (rest, [i for g in range(len(grouped)) for i in (counted(rows[g]), counted(grouped[g]))], True)
                )
            params.append(is_param)
            macs.append(positions)
        self._classes = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
        self._starts = np.array(bounds[:-1], dtype=np.int64)
        self._params, self._macs = np.array(params, dtype=np.int64), np.array(macs, dtype=np.int64)
        self._fixed = (fixed_params, fixed_macs)
        self._batch = _batch(program)
        self._index()

    def _index(self) -> None:
        """Lay the terms out flat: each term is a sum of products of up to three counts."""
        width = max((len(t[1]) for t in self._terms if not t[2]), default=1)
        rows: list[list[int]] = []
        owner: list[int] = []
        one = len(self._starts)
        for index, (_, counts, grouped) in enumerate(self._terms):
            products = [counts[i : i + 2] for i in range(0, len(counts), 2)] if grouped else [counts]
            for product in products:
                rows.append([*product, *[one] * (max(width, 2) - len(product))])
                owner.append(index)
        self._rows = np.array(rows, dtype=np.int64).reshape(len(rows), -1)
        self._owner = np.array(owner, dtype=np.int64)
        self._rest = np.array([t[0] for t in self._terms], dtype=np.int64)

    def __call__(self, keep: npt.NDArray[np.bool_]) -> tuple[int, int]:
        """Return (params, MACs per sample) when the classes in ``keep`` stay."""
        if not len(self._classes):
            return self._fixed[0], self._fixed[1] // self._batch
        counts = np.append(np.add.reduceat(keep[self._classes].astype(np.int64), self._starts), 1)
        products = counts[self._rows].prod(axis=1)
        elements = np.bincount(self._owner, weights=products, minlength=len(self._terms)).astype(np.int64) * self._rest
        params = int((elements * self._params).sum()) + self._fixed[0]
        macs = int((elements * self._macs).sum()) + self._fixed[1]
        return params, macs // self._batch


def _positions_per_tensor(program: Program, shared: Mapping[str, str]) -> dict[str, int]:
    """Return, per weight tensor, the positions that all its uses together apply it to."""
    found: dict[str, int] = {}
    for call, positions in weighted_calls(program):
        weight = call["weight"]
        if isinstance(weight, fx.Node):
            if weight.op != "get_attr":
                continue
            name = str(weight.target)
        else:
            name = f"{call.owner}.weight"
        name = shared.get(name, name)
        found[name] = found.get(name, 0) + positions
    return found
