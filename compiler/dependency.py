"""What the analysis finds: slices, uses, ties, pins, balances, and the groups they close into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import fx

from .labels import Atoms, ChannelLabels

if TYPE_CHECKING:
    import networkx as nx

    from .explain import Explanation
    from .program import Program

Classes = npt.NDArray[np.int64]
"""Indices of channel classes: atoms that live and die together."""


class Role(Enum):
    """What a tensor axis does with the channels along it."""

    PRODUCES = "produces"
    CONSUMES = "consumes"
    CARRIES = "carries"


@dataclass(frozen=True, eq=False)
class ParamSlice:
    """Axis ``axis`` of parameter or buffer ``name`` is indexed by ``atoms``.

    Two-dimensional atoms (groups, channels per group) belong to axis 1 of a grouped convolution's weight.
    """

    name: str
    axis: int
    atoms: Atoms
    role: Role
    node: str
    kind: str
    """Operation key of the reader ("conv", "batch_norm"), which criteria and the cost model go by."""


@dataclass(frozen=True, eq=False)
class Count:
    """A number that follows the channels: how many rows of ``cells`` keep at least one channel.

    With ``widest``, how many channels the widest row keeps (the last axis of a tensor with several channel axes).
    """

    cells: Atoms
    """Shape (rows, channels per row)."""
    widest: bool = False


@dataclass(frozen=True)
class AttrUse:
    """Attribute ``attribute`` of the leaf module ``owner`` is a count of channels (``out_channels``, ``groups``).

    ``item`` picks an entry of a tuple attribute (``normalized_shape``).
    """

    owner: str
    attribute: str
    count: Count
    item: int | None = None


@dataclass(frozen=True)
class ArgUse:
    """Parameter ``name`` of functional node ``node`` holds counts.

    ``template`` mirrors its value, with :class:`Count` leaves where channels are counted and KEEP where the written
    value stays.
    """

    node: fx.Node
    key: str
    name: str
    template: Any


@dataclass(frozen=True, eq=False)
class Gather:
    """A tensor that is nothing but positions of ``source`` along one axis, however many moves it took to get there."""

    source: fx.Node
    axis: int
    positions: Atoms
    """Position in ``source`` of each position of the result along the same axis."""
    path: tuple[fx.Node, ...]
    """The moves in between, whose labels have several axes."""


@dataclass(frozen=True, eq=False)
class Cut:
    """A place behind which channels are chosen anew, out of those in front of it."""

    source: Atoms
    """In front of it, along ``axis``."""
    atoms: Atoms
    """Behind it: ``atoms[i]`` can stay only where ``source[i]`` does."""
    axis: int


class _Keep:
    def __repr__(self) -> str:
        return "KEEP"


KEEP = _Keep()


@dataclass(frozen=True, eq=False)
class Tie:
    """``a[i]`` and ``b[i]`` live and die together."""

    a: Atoms
    b: Atoms
    node: str
    reason: str


@dataclass(frozen=True, eq=False)
class Pin:
    """These atoms stay."""

    atoms: Atoms
    node: str
    reason: str
    computed: str = ""
    """The weights that are computed there, if it is weights that the node computes."""


@dataclass(frozen=True, eq=False)
class Balance:
    """Every row of ``cells`` that keeps anything must keep the same number.

    ``partner`` is the other side of a grouped convolution (input cells against output cells): row i of one may be
    emptied only together with row i of the other. Without a partner rows may not be emptied, unless ``droppable``.
    """

    cells: Atoms
    node: str
    reason: str
    partner: Atoms | None = None
    droppable: bool = False


@dataclass(frozen=True, eq=False)
class Cells:
    """Heads or groups that go as wholes, where the analysis was asked for that."""

    atoms: Atoms
    """Shape (cells, channels per cell): a row is one class."""
    node: str
    reason: str


@dataclass(frozen=True, eq=False)
class Block:
    """Classes of a group from which channels are chosen together: every cell keeps the same fraction.

    Keeping ``size * level / levels`` of each cell satisfies every balance that made the cells (levels = gcd of the
    sizes).
    """

    cells: tuple[Classes, ...]
    levels: int
    pinned: npt.NDArray[np.bool_]
    """Per class of ``np.concatenate(cells)``: whether it must stay."""
    units: tuple[int, ...] = (1,)
    """Channels that a class stands for, in one layer or another: more than one where whole heads or groups go."""

    @property
    def classes(self) -> Classes:
        """All classes of the block, cell by cell."""
        return np.concatenate(self.cells)

    def widths(self, levels: Classes) -> Classes:
        """Return how many channels the block keeps at these levels, of the layer with the smallest cells."""
        return min(self.units) * self.kept(levels)

    def kept(self, levels: Classes) -> Classes:
        """Return how many classes the block keeps at these levels."""
        return sum(len(cell) for cell in self.cells) * levels // self.levels

    @property
    def whole(self) -> bool:
        """Whether classes are heads or groups that go as wholes."""
        return self.units != (1,)


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Layers whose output channels are coupled."""

    name: str
    """The first layer, in graph order, that gives the group its channels."""
    layers: tuple[str, ...]
    """Producers: layers whose output channels belong to the group, in graph order."""
    classes: Classes
    blocks: tuple[Block, ...]
    pins: tuple[Pin, ...]
    """Why something in the group stays; empty when all of it may go."""

    @property
    def width(self) -> int:
        """Number of channel classes."""
        return len(self.classes)

    def channels(self, keep: npt.NDArray[np.bool_]) -> int:
        """Return how many channels stay if the classes in ``keep`` do: a cell that goes as a whole has several."""
        return sum(min(b.units) * int(keep[b.classes].sum()) for b in self.blocks)

    @property
    def prunable(self) -> int:
        """Number of classes that may be removed (not counting the rule that no layer is emptied)."""
        return int(sum((~b.pinned).sum() for b in self.blocks))


@dataclass(frozen=True, eq=False)
class ChannelDependencies:
    """The channel-dependency analysis of one program."""

    class_of: npt.NDArray[np.int64]
    """Atom -> class."""
    groups: tuple[ChannelGroup, ...]
    labels: Mapping[fx.Node, Any]
    """Node -> ChannelLabels (tuples and dicts of them for such values)."""
    slices: tuple[ParamSlice, ...]
    attributes: tuple[AttrUse, ...]
    arguments: tuple[ArgUse, ...]
    ties: tuple[Tie, ...]
    pins: tuple[Pin, ...]
    balances: tuple[Balance, ...]
    cells: tuple[Cells, ...]
    """What goes as a whole, if ``whole_cells``."""
    norms: Mapping[str, Atoms]
    """Node of a normalisation over channels -> atoms along the normalised axis ((groups, channels) for group norm)."""
    gathers: Mapping[fx.Node, Gather] = field(default_factory=dict[fx.Node, Gather])
    """Results of movement that may have to be rewritten to one gather, since what is kept need not be a rectangle."""
    cuts: Mapping[fx.Node, Cut] = field(default_factory=dict[fx.Node, Cut])
    """Where the caller wanted channels to be chosen anew."""
    whole_cells: bool = False
    """Whether heads and groups go as wholes; else all of them shrink alike."""
    shared: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name of a parameter -> the first name of the same tensor (weight tying)."""

    def group_of(self, layer: str) -> ChannelGroup | None:
        """Return the group that holds the output channels of ``layer``."""
        return next((g for g in self.groups if layer in g.layers), None)

    def explain(self, program: Program, layer: str, other: str | None = None) -> Explanation:
        """Say why two layers are coupled, or why a layer is (not) pruned; see :mod:`.explain`."""
        from .explain import explain

        return explain(self, program, layer, other)

    def to_networkx(self, program: Program) -> nx.MultiDiGraph[str]:
        """Return the dependencies as a graph of layers; see :mod:`.layer_graph`."""
        from .layer_graph import build

        return build(self, program)

    def labels_of(self, node: fx.Node) -> ChannelLabels:
        """Return the labels of a tensor node."""
        found = self.labels.get(node)
        return found if isinstance(found, ChannelLabels) else ChannelLabels()
