"""Filters by the compiler's analysis: channels that live and die together, and every tensor that gives them values.

A channel of a group is zeroed in all layers that produce it and in all norms that carry it, shifts included, so that
nothing is left of it anywhere: what reads it reads zeros, and ``eliminate-dead-channels`` removes it exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ....compiler.analysis import analyze
from ....compiler.dependency import ChannelDependencies, ChannelGroup, Role
from ....compiler.errors import OptionError
from ....compiler.ops import normalise
from ....compiler.program import Program
from ....passes.eliminate_dead_channels import mixed_channels
from ....passes.patterns import matches
from ....passes.prune.criteria.weights import ElementSums, is_weight
from ....passes.prune.selection import Limits, Selection

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

Norm = Literal["l1", "l2"]
_SUMS: Final = frozenset({"add", "iadd", "sub", "isub", "add_", "sub_"})


@dataclass(frozen=True, eq=False)
class Filters:
    """The filters of one network."""

    program: Program
    module: nn.Module
    """What is trained; its parameters have the names that the program has."""

    @cached_property
    def deps(self) -> ChannelDependencies:
        """The analysis."""
        return analyze(self.program)

    @cached_property
    def count(self) -> int:
        """Number of channel classes."""
        return int(self.deps.class_of.max()) + 1 if len(self.deps.class_of) else 0

    def norms(self, norm: Norm) -> Floats:
        """Return the norm of every filter: [classes], the sum over the layers that give the channel.

        ``l2`` is that of He et al., Soft Filter Pruning, IJCAI 2018, section 3.2; ``l1`` that of Li et al., ICLR 2017.
        """
        sums = ElementSums(torch.abs if norm == "l1" else torch.square)
        found = np.zeros(self.count)
        for use in self.deps.slices:
            if use.role is Role.PRODUCES and is_weight(use):
                values = sums(self.module.get_parameter(use.name), use).ravel()
                np.add.at(found, self.deps.class_of[use.atoms.ravel()], values if norm == "l1" else np.sqrt(values))
        return found

    def smallest(self, norm: Norm, rates: Mapping[int, float]) -> Bools:
        """Return the filters that are to be zeroed: [classes].

        Args:
            norm: By which the smallest are found.
            rates: Block (see :meth:`blocks`) -> fraction, rounded down to whole filters, equal in every cell.
        """
        selection = Selection(self.deps, self.norms(norm), Limits(1, 1), lambda group: False, relative=True)
        return ~selection.keep(selection.at_ratio(rates))

    def blocks(self) -> Iterator[tuple[int, ChannelGroup]]:
        """Yield the number of every block of channels that are chosen together, and its group."""
        number = 0
        for group in self.deps.groups:
            for block in group.blocks:
                if group.layers and block.levels > 1:
                    yield number, group
                number += 1

    @cached_property
    def on_shortcuts(self) -> frozenset[str]:
        """Names of the groups whose channels are summed up with others: residual trunks."""
        nodes = {node.name: node for node in self.program.graph.nodes}
        summed: Bools = np.zeros(self.count, dtype=np.bool_)
        for tie in self.deps.ties:
            node = nodes.get(tie.node)
            if node is not None and node.op.startswith("call_") and normalise(self.program, node).title in _SUMS:
                summed[self.deps.class_of[tie.a.ravel()]] = True
        return frozenset(group.name for group in self.deps.groups if summed[group.classes].any())

    @cached_property
    def _mixed(self) -> Mapping[int, str]:
        return mixed_channels(self.program, self.deps)

    def staying(self, group: ChannelGroup) -> str:
        """Return why channels of a group stay though they are zero (layer norms count zeros too); empty if they go."""
        return next((self._mixed[c] for c in group.classes.tolist() if c in self._mixed), "")

    def check(self, patterns: Mapping[str, float]) -> None:
        """Refuse patterns that match no layer.

        Raises:
            OptionError: Names the pattern.
        """
        layers = [layer for _, group in self.blocks() for layer in group.layers]
        for pattern in patterns:
            if not any(matches(pattern, layer) for layer in layers):
                raise OptionError(f"layers names none: '{pattern}'", hint=f"layers are {', '.join(layers[:6])}, ...")

    @cached_property
    def _tensors(self) -> dict[str, tuple[int, npt.NDArray[np.int64], Role]]:
        """Parameter -> axis along which its channels stand, their classes, and what it does with them."""
        parameters = dict(self.module.named_parameters())
        found: dict[str, tuple[int, npt.NDArray[np.int64], Role]] = {}
        for use in self.deps.slices:
            if use.role is not Role.CONSUMES and use.atoms.ndim == 1 and use.name in parameters:
                found.setdefault(use.name, (use.axis, self.deps.class_of[use.atoms], use.role))
        return found

    def parts(self, gone: Bools) -> Iterator[tuple[str, nn.Parameter, Tensor, Role]]:
        """Yield the parameters that filters are made of: name, tensor, mask that broadcasts (1 where gone), role."""
        parameters = dict(self.module.named_parameters())
        for name, (axis, classes, role) in self._tensors.items():
            parameter = parameters[name]
            chosen = torch.from_numpy(gone[classes]).to(parameter.device)
            if bool(chosen.any()):
                shape = [-1 if place == axis else 1 for place in range(parameter.ndim)]
                yield name, parameter, chosen.view(shape), role

    @torch.no_grad()
    def zero(self, gone: Bools) -> None:
        """Zero filters in place."""
        for _, parameter, mask, _ in self.parts(gone):
            parameter.masked_fill_(mask, 0.0)
