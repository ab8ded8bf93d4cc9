"""What tests of pruning share: running a pass with its proof, and applying a plan by hand."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.dependency import ChannelDependencies, ChannelGroup, ParamSlice
from secateur.compiler.labels import ChannelLabels
from secateur.compiler.plan import Kept, Plan
from secateur.compiler.program import Program
from secateur.compiler.proof import Proof, prove
from secateur.passes.base import PassResult
from secateur.passes.prune.prune import Prune

from .zoo import ZOO


@cache
def program_of(name: str) -> Program:
    """The captured zoo case; programs are never changed, so one is enough."""
    return ZOO[name].program()


def prune(program: Program, **options: Any) -> tuple[PassResult, Proof]:
    """Prune and prove; the proof must hold."""
    result = Prune(**options).run(program)
    assert result.plan is not None
    proof = prove(program, result.program.module, result.plan)
    assert proof.holds, f"error {proof.error:.3g}"
    return result, proof


def prune_module(module: nn.Module, *inputs: Tensor, **options: Any) -> nn.Module:
    """Capture, prune, prove; returns the module."""
    return prune(trace(module, inputs), **options)[0].program.module


def plan_of(result: PassResult) -> Plan:
    """The plan of a prune."""
    assert result.plan is not None
    return result.plan


def group_of(deps: ChannelDependencies, layer: str) -> ChannelGroup:
    """The group of a layer that must have one."""
    group = deps.group_of(layer)
    assert group is not None, f"{layer} is in no group"
    return group


def reasons(deps: ChannelDependencies, layer: str) -> list[str]:
    """Why something of a layer's group stays."""
    return [pin.reason for pin in group_of(deps, layer).pins]


def leaves(value: Any) -> list[Tensor]:
    """All tensors in an output."""
    return [x if isinstance(x, Tensor) else torch.as_tensor(x) for x in _pytree.tree_leaves(value)]


def loss_of(value: Any) -> Tensor:
    """A number that depends on all outputs."""
    return torch.stack([x.square().mean() for x in leaves(value) if x.is_floating_point()]).sum()


def kept_part(tensor: Tensor, axes: dict[int, Kept]) -> Tensor:
    """Apply a plan's entry to an original tensor, straight from the plan's definition."""
    nested = axes.get(1, [])
    if not nested or not isinstance(nested[0], list):
        for axis, indices in axes.items():
            tensor = tensor.index_select(axis, torch.tensor(indices))
        return tensor
    rows: Any = axes.get(0, list(range(len(tensor))))
    per_group = len(rows) // len(nested)
    parts = [
        tensor[rows[g * per_group : (g + 1) * per_group]].index_select(1, torch.tensor(columns))
        for g, columns in enumerate(nested)
    ]
    return torch.cat(parts)


@cache
def deps_of(name: str) -> ChannelDependencies:
    """The analysis of a zoo case."""
    return analyze(program_of(name))


def kept_of(result: PassResult, name: str, axis: int = 0) -> list[int]:
    """Kept indices along one axis of an original tensor."""
    return [i for i in plan_of(result).kept[name][axis] if isinstance(i, int)]


def use_of(deps: ChannelDependencies, name: str, axis: int = 0) -> ParamSlice:
    """The one use of a tensor's axis."""
    (use,) = {id(u): u for u in deps.slices if u.name == name and u.axis == axis}.values()
    return use


def labels_at(name: str, node: str) -> ChannelLabels:
    """The labels of a node, by name."""
    (found,) = (n for n in program_of(name).graph.nodes if n.name == node)
    return deps_of(name).labels_of(found)


def tie_reasons(deps: ChannelDependencies) -> set[str]:
    """All reasons for which channels were coupled."""
    return {tie.reason for tie in deps.ties}


def same_classes(deps: ChannelDependencies, a: ParamSlice, b: ParamSlice) -> bool:
    """Whether two axes are indexed by the same channels, one by one."""
    return bool((deps.class_of[a.atoms.ravel()] == deps.class_of[b.atoms.ravel()]).all())


def widths(result: PassResult) -> dict[str, int]:
    """Group name -> channels kept."""
    return {group.name: group.after for group in plan_of(result).groups}
