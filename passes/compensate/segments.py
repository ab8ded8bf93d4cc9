"""A program cut into segments: stretches that only one tensor enters and one leaves, with layers to refit inside.

    trunk -> [conv -> norm -> relu -> conv -> norm -> + trunk -> relu] -> trunk

A residual block is one; so is a dense block, or two layers of a plain chain. What leaves a segment must have a
counterpart in the dense program, or the segment goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch import fx

from ...compiler.shapes import is_tensor, shape_of
from .layers import Channels, Pairs, Refittable

LAYERS: Final = 2
"""A segment of a plain chain ends in front of the next layer when it holds so many."""


@dataclass(frozen=True, eq=False)
class Segment:
    """Part of a pruned program."""

    nodes: tuple[fx.Node, ...]
    """In graph order; the last one leaves."""
    layers: tuple[Refittable, ...]
    reads: tuple[fx.Node, ...]
    """What enters: nodes in front that some node inside reads."""
    end: fx.Node
    dense_end: fx.Node
    channels: Channels
    """Of the end."""

    @property
    def name(self) -> str:
        """What to call it in a remark: its layers."""
        return ", ".join(layer.path for layer in self.layers)


def segments(pairs: Pairs, layers: Sequence[Refittable]) -> list[Segment]:
    """Cut a program at the tensors that everything passes through."""
    nodes = list(pairs.program.graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    inside = {layer.call.node: layer for layer in layers}
    known = pairs.channels()
    found: list[Segment] = []
    begin = 0
    live: set[fx.Node] = set()
    for here, node in enumerate(nodes):
        if node.op == "output":
            break
        live = {n for n in live if any(position[user] > here for user in n.users)}
        if is_tensor(node) and node.op != "get_attr" and node.users:
            live.add(node)
        part = [n for n in nodes[begin : here + 1] if n.op != "placeholder"]
        held = [inside[n] for n in part if n in inside]
        if live != {node}:
            continue
        if not held:
            begin = here + 1
        elif _ends(pairs, node, nodes[here + 1 :], len(held), known):
            end = pairs.twin(node)
            assert end is not None
            reads = dict.fromkeys(r for n in part for r in n.all_input_nodes if r not in part)
            found.append(Segment(tuple(part), tuple(held), tuple(reads), node, end, known[node]))
            begin = here + 1
    return found


def _ends(pairs: Pairs, node: fx.Node, behind: Sequence[fx.Node], held: int, known: Mapping[fx.Node, Channels]) -> bool:
    """Tell whether a segment may end at a tensor that everything passes through."""
    twin = pairs.twin(node)
    if node not in known or twin is None or len(shape_of(twin)) != len(shape_of(node)):
        return False
    following = next((n for n in behind if is_tensor(n) and n.op != "get_attr"), None)
    if following is None:
        return True
    if following in known and not pairs.is_weighted(following):
        return False  # what works channel by channel belongs to what is in front of it
    return held >= LAYERS or len(node.users) > 1 or not pairs.any_weighted(behind)
