"""``eliminate-dead-channels``: channels that are constant, or that nothing reads, go; what they added goes into biases.

    y = W x + b,  x[i] = c[i] for i in D   ->   y = W[:, K] x[K] + b'     b' = b + sum over i in D, k of W[:, i, k] c[i]

for the dead channels D and the others K. What is constant is found by ``compiler.constants``: channels of batch norms
of scale 0, of rows of zeros, and all that follows from them. A class of coupled channels goes if, at every convolution
and linear layer, each of its channels is a constant or meets a column of zeros, and if it adds only zeros where a
product of activations sums over it (queries and keys). Where a layer pads with zeros, a constant c != 0 is another one
at the border:

    border=refuse   such a channel stays
    border=merge    one of them, j, stays for all: W'[:, j] = W[:, j] + sum over i in D of W[:, i] c[i] / c[j]

All of it is exact in evaluation mode, for finite activations; computed in float64 and rounded once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..compiler.analysis import analyze
from ..compiler.collection import no_collection
from ..compiler.constant_layers import Reading, as_kernel
from ..compiler.constant_products import Product
from ..compiler.constants import Constants, find_constants
from ..compiler.dependency import ChannelDependencies, ParamSlice, Role
from ..compiler.labels import Atoms
from ..compiler.ops import normalise
from ..compiler.program import Program
from ..compiler.rules import RULES
from ..compiler.rules.movement import MOVES
from .base import Contract, Pass, PassResult, Remark, RemarkKind
from .slicing.legal import Legality
from .slicing.plan import plan_of
from .slicing.rewrite import rewrite
from .slicing.tensors import KeptChannels, slice_tensors

NOTE: Final = "dead channels were removed: the result is for inference, and trains without them"
SMALLEST_CARRIER: Final = 0.1
"""A channel carries the borders of others only if its constant is at least this fraction of the largest."""

_UNMIXED: Final = MOVES | frozenset(
    "conv conv_transpose linear embedding batch_norm instance_norm layer_norm group_norm prelu unary binary where "
    "softmax glu max_pool avg_pool lp_pool adaptive_pool interpolate pixel_shuffle pixel_unshuffle channel_shuffle cat "
    "stack index_select roll flip pad reduce variance extremum size shape rank create_like "
    "matmul einsum attention normalize".split()
)
"""Operations through which a channel reaches its own class only, or none if it is 0; what layers, norms and products
do besides is looked at."""

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EliminateDeadChannels(Pass):
    """Remove constant channels exactly."""

    name: ClassVar[str] = "eliminate-dead-channels"
    contract: ClassVar[Contract] = Contract.EXACT

    border: Literal["refuse", "merge"] = "refuse"
    """What to do with constants other than 0 in front of a layer that pads with zeros."""

    @no_collection()
    def run(self, program: Program) -> PassResult:
        """Eliminate; see :class:`~.base.Pass`."""
        deps = analyze(program)
        constants = find_constants(program, deps)
        readers = list(_readers(program, deps, constants))
        search = _Search(program, deps, constants, readers, merge=self.border == "merge")
        removed = search.run()
        stats = {"channels": sum(g.width for g in deps.groups), "removed": int(removed.sum())}
        missed = tuple(Remark(RemarkKind.MISSED, self.name, where, why) for where, why in search.missed())
        if not removed.any():
            kept = KeptChannels(deps, ~removed)
            return PassResult(program, changed=False, stats=stats, remarks=missed, plan=plan_of(kept, {}))
        changed: dict[str, Tensor] = {}
        added: list[ParamSlice] = []
        applied = [Remark(RemarkKind.APPLIED, self.name, where, why) for where, why in _counts(deps, removed)]
        for reader in readers:
            what = _compensate(reader, removed, changed, added)
            applied += [Remark(RemarkKind.APPLIED, self.name, reader.where, what)] if what else []
        kept = KeptChannels(replace(deps, slices=(*deps.slices, *added)), ~removed)
        tensors, indices = slice_tensors(program, kept, changed)
        compact = rewrite(program, tensors, kept)
        notes = compact.notes if NOTE in compact.notes else (*compact.notes, NOTE)
        made = {use.name for use in added}  # new biases are no tensors of the original, which a plan is about
        plan = plan_of(kept, {name: axes for name, axes in indices.items() if name not in made})
        compact = replace(compact, notes=notes)
        return PassResult(compact, changed=True, stats=stats, remarks=(*applied, *missed), plan=plan)


# Layers that read channels --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Reader:
    """A layer and the classes along its weight; constants and classes in the order of the weight's groups."""

    reading: Reading
    inputs: Ints
    """Class of every input channel: [groups, I/g]."""
    outputs: Ints
    """Class of every output channel: [groups, O/g]."""
    atoms: Atoms
    """Output channels: [O]."""
    constants: npt.NDArray[np.float64]
    """[groups, I/g], NaN where the channel is not constant."""
    fixed: str
    """Why this layer takes in no constants; empty if it does."""

    @property
    def where(self) -> str:
        """The layer's name, or the node's."""
        return self.reading.call.owner or self.reading.call.node.name

    def reads(self, removed: Bools, columns: Bools) -> Bools:
        """Tell which of some input channels [groups, I/g] are read with a weight other than 0 by a row that stays."""
        stays: Bools = ~removed[self.outputs]
        kernel = self.reading.kernel
        if kernel is None:
            return columns & stays.any(axis=1, keepdims=True)
        picked = columns.any(0)
        found = np.zeros_like(columns)
        if len(kernel) == 1:
            kernel = kernel[:, torch.from_numpy(np.flatnonzero(stays))]
            stays = np.ones(kernel.shape[:2], dtype=np.bool_)
        weights = (kernel[:, :, torch.from_numpy(np.flatnonzero(picked))] != 0).any(-1).numpy()
        found[:, picked] = (weights & stays[:, :, None]).any(1)
        return found & columns


def _readers(program: Program, deps: ChannelDependencies, constants: Constants) -> Iterator[_Reader]:
    """Yield the layers that read removable channels, in graph order."""
    uses = _count_uses(program)
    for node, reading in constants.readings.items():
        call = reading.call
        before = deps.labels_of(call.input).factor_at(reading.axis)
        after = deps.labels_of(node).factor_at(reading.axis)
        if before is None or after is None:
            continue
        groups = 1 if reading.kernel is None else len(reading.kernel)
        # The other axes of the factor were tied: any position on them stands for all.
        atoms = np.moveaxis(before.atoms, before.axes.index(reading.axis), -1).reshape(-1, len(reading.channels))[0]
        inputs, outputs = (deps.class_of[a].reshape(groups, -1) for a in (atoms, after.atoms))
        channels = reading.channels.reshape(groups, -1)
        fixed = ""
        if call.module is None:
            fixed = "its weight is an argument of a function"
        elif reading.kernel is None:
            fixed = "its weight is quantized"
        elif uses[id(call.module)] > 1 or any(uses[id(t)] > 1 for t in call.module.parameters()):
            fixed = "it is called more than once, or shares its tensors"
        yield _Reader(reading, inputs, outputs, after.atoms, channels, fixed)


def _count_uses(program: Program) -> Counter[int]:
    """Count how many nodes read each layer and each tensor, by identity."""
    found: Counter[int] = Counter()
    for node in program.graph.nodes:
        if node.op == "call_module":
            layer = program.owner(str(node.target))
            found.update(map(id, [layer, *layer.parameters()]))
        elif node.op == "get_attr":
            found[id(program.attribute(str(node.target)))] += 1
    return found


def mixed_channels(program: Program, deps: ChannelDependencies) -> dict[int, str]:
    """Return the classes that stay even where they are 0 throughout, and why.

    They are normalised over together with others, or reach an operation that may mix channels in a way of its own.
    """
    found: dict[int, str] = {}
    for name, atoms in deps.norms.items():
        why = f"it is part of the statistics of a normalisation (node {name})"
        found = dict.fromkeys(np.unique(deps.class_of[atoms]).tolist(), why) | found
    for node in program.graph.nodes:
        if not node.op.startswith("call_") or (key := normalise(program, node).key) not in RULES.keys() - _UNMIXED:
            continue
        for reader in (node, *node.all_input_nodes):
            for factor in deps.labels_of(reader).factors:
                why = f"read by {key!r} (node {node.name})"
                found = dict.fromkeys(np.unique(deps.class_of[factor.atoms]).tolist(), why) | found
    return found


# What may go ----------------------------------------------------------------------------------------------------------


class _Search:
    """The largest set of classes that may go: start from all, put back what is read and not constant, until none is."""

    def __init__(
        self,
        program: Program,
        deps: ChannelDependencies,
        constants: Constants,
        readers: list[_Reader],
        *,
        merge: bool,
    ) -> None:
        self.deps = deps
        self.readers = readers
        self.merge = merge
        self.legality = Legality(deps)
        self.removed = self.legality.candidates.copy()
        self.why: dict[int, str] = {}
        """Class -> why it stays, as far as that is not that it is alive."""
        for class_, why in mixed_channels(program, deps).items():
            self._put_back(np.array([class_]), why)
        for node, products in constants.products.items():
            for product in products:
                self._keep_what_is_summed(product, f"a product sums over it (node {node.name})")

    def run(self) -> Bools:
        """Return the classes that go."""
        before = -1
        while before != (before := int(self.removed.sum())):
            for reader in reversed(self.readers):  # what is put back in one layer is read by those before it
                self._put_back_alive(reader)
            self.why.update(self.legality.restore(self.removed))
        return self.removed

    def missed(self) -> Iterator[tuple[str, str]]:
        """Yield what is constant wherever it is read and stays all the same: group and reason."""
        constant = self._constant() & ~self.removed
        pins = {int(c): pin for pin in reversed(self.deps.pins) for c in np.unique(self.deps.class_of[pin.atoms])}
        for group in self.deps.groups:
            reasons: Counter[str] = Counter()
            for class_ in group.classes[constant[group.classes]].tolist():
                pin = pins.get(class_)
                pinned = f"{pin.reason} (node {pin.node})" if pin is not None else "no layer gives it"
                reasons[self.why.get(class_, pinned)] += 1
            for reason, count in reasons.items():
                yield group.name, f"{count} constant channel{'s stay' if count > 1 else ' stays'}: {reason}"

    def _keep_what_is_summed(self, product: Product, why: str) -> None:
        for operand, term in zip(product.operands, product.terms, strict=True):
            for factor in self.deps.labels_of(operand).factors if operand is not None else ():
                letters = "".join(term[axis] for axis in factor.axes)
                if letters[-1] not in product.result:  # else it reaches its own class only, as in the product's rule
                    adds = np.broadcast_to(~product.vanishes(letters), factor.atoms.shape)
                    self._put_back(self.deps.class_of[factor.atoms[adds]], why)

    def _put_back(self, classes: Ints, why: str = "") -> None:
        for class_ in np.unique(classes[self.removed[classes]]).tolist():
            self.removed[class_] = False
            if why:
                self.why[class_] = why

    def _put_back_alive(self, reader: _Reader) -> None:
        gone = self.removed[reader.inputs]
        known = ~np.isnan(reader.constants)
        shown = known & (reader.constants != 0)
        borders = reader.reading.borders
        stuck = shown if reader.fixed or (borders and not self.merge) else np.zeros_like(shown)
        questioned = gone & (~known | stuck)
        if questioned.any():
            read = reader.reads(self.removed, questioned)
            why = f"{reader.where} (node {reader.reading.call.node.name}) "
            why += reader.fixed and f"cannot take it in: {reader.fixed}"
            why += "" if reader.fixed else "pads with zeros, and the constant would be missing at the border"
            self._put_back(reader.inputs[read & known], why)
            self._put_back(reader.inputs[read & ~known])
        if borders and self.merge and not reader.fixed:
            self._put_back_carriers(reader, known & (reader.constants != 0))

    def _put_back_carriers(self, reader: _Reader, shown: Bools) -> None:
        """See that in every group with constants to merge, one stays that is not small beside them."""
        gone = shown & self.removed[reader.inputs]
        if not gone.any():
            return
        read = reader.reads(self.removed, gone)
        for group in np.flatnonzero(read.any(1)).tolist():
            size = np.abs(reader.constants[group])
            largest = int(np.where(read[group], size, 0.0).argmax())
            carrier = _carrier(reader, group, self.removed)
            if carrier is None or size[carrier] < SMALLEST_CARRIER * size[largest]:
                reason = f"it carries the borders of the other constants to {reader.where}"
                self._put_back(reader.inputs[group, [largest]], reason)

    def _constant(self) -> Bools:
        """Tell which classes are read, and constant wherever they are; a depthwise layer only hands them on."""
        constant: Bools = np.zeros_like(self.removed)
        alive: Bools = np.zeros_like(self.removed)
        for reader in self.readers:
            handed_on = (reader.outputs[:, :1] == reader.inputs).all(1) & (reader.outputs == reader.outputs[:, :1]).all(
                1
            )
            inputs, constants = reader.inputs[~handed_on], reader.constants[~handed_on]
            constant[inputs] = True
            alive[inputs[np.isnan(constants)]] = True
        return constant & ~alive


def _carrier(reader: _Reader, group: int, removed: Bools) -> int | None:
    """Return the largest constant input channel of a group that stays."""
    size = np.abs(np.nan_to_num(reader.constants[group], nan=0.0))
    size[removed[reader.inputs[group]]] = 0.0
    best = int(size.argmax())
    return best if size[best] > 0 else None


# What changes ---------------------------------------------------------------------------------------------------------


def _counts(deps: ChannelDependencies, removed: Bools) -> Iterator[tuple[str, str]]:
    """Yield, for every layer that loses output channels, how many."""
    seen: set[str] = set()
    for use in deps.slices:
        lost = removed[deps.class_of[use.atoms.ravel()]]
        if use.role is Role.PRODUCES and lost.any() and use.name not in seen:
            seen.add(use.name)
            owner, _, leaf = use.name.rpartition(".")
            name = owner if leaf == "weight" and owner else use.name
            yield name, f"{int(lost.sum())} of {len(lost)} output channels are constant or unread: removed"


def _compensate(reader: _Reader, removed: Bools, changed: dict[str, Tensor], added: list[ParamSlice]) -> str:
    """Give a layer what the removed channels added; returns what was done, in words."""
    call, kernel = reader.reading.call, reader.reading.kernel
    shown = removed[reader.inputs] & (np.nan_to_num(reader.constants, nan=0.0) != 0)
    if reader.fixed or kernel is None or not (shown := reader.reads(removed, shown)).any():
        return ""
    weight: Any = call["weight"]
    if reader.reading.borders:
        wide = weight.detach().double().contiguous().clone()
        taps = as_kernel(call, wide)
        for group in np.flatnonzero(shown.any(1)).tolist():
            carrier = _carrier(reader, group, removed)
            assert carrier is not None
            gone = np.flatnonzero(shown[group])
            ratio = torch.from_numpy(reader.constants[group, gone] / reader.constants[group, carrier])
            taps[group, :, carrier] += torch.einsum("oik,i->ok", taps[group][:, gone], ratio.to(taps.device))
        changed[f"{call.owner}.weight"] = _like(wide, weight)
        return f"{_inputs(shown)} merged into what stays"
    constants = torch.from_numpy(np.where(shown, reader.constants, 0.0))
    columns = torch.from_numpy(np.flatnonzero(shown.any(0)))
    moved = torch.einsum("goik,gi->go", kernel[:, :, columns].double(), constants[:, columns]).ravel()
    bias = call["bias"]
    name = f"{call.owner}.bias"
    if bias is None:
        added.append(ParamSlice(name, 0, reader.atoms, Role.CARRIES, call.node.name, call.key))
        changed[name] = _like(moved, weight)
    else:
        changed[name] = _like(bias.detach().cpu().double() + moved, bias)
    return f"{_inputs(shown)} moved into its {'new ' if bias is None else ''}bias"


def _inputs(shown: Bools) -> str:
    return f"{int(shown.sum())} constant input channel{'s' if shown.sum() > 1 else ''}"


def _like(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.device, like.dtype), requires_grad=like.requires_grad)
