"""What narrowing each block costs, in a currency that adds up over the network: what a knapsack keeps low.

``share``    damage(b, level) = readers(b) * -log(kept score / whole score)

Each layer that reads a block loses the part of its input's score that goes, and what is left of a signal multiplies
from layer to layer, so its logarithm adds up. ``readers`` counts layers by weight matrix: one that reads several blocks
side by side (after a concatenation) counts for each by the share of its inputs. A layer that reads through a cut reads
what is in front of it too. Scores need only be comparable within a block.

``sum``      damage(b, level) = removed score / whole score of all blocks

For criteria whose scores estimate the loss itself, so that they compare between layers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ...compiler.dependency import ChannelDependencies, Role
from .selection import Ints, Selection

Floats = npt.NDArray[np.float64]
Currency = Literal["share", "sum"]

_WEIGHTED = frozenset({"conv", "conv_transpose", "linear"})
_LEAST = 1e-6
"""Share of the score below which a block counts as gone: keeps logarithms finite."""


def damage_of(deps: ChannelDependencies, selection: Selection, currency: Currency = "share") -> list[Floats]:
    """Return, per block, the damage at each of its levels: [levels + 1], index 0 unused.

    Args:
        deps: The analysis.
        selection: Blocks, non-negative scores, and the order in which channels go.
        currency: How scores become damage.
    """
    scores = selection.scores
    whole = float(sum(scores[block.classes].sum() for block in selection.blocks)) or 1.0
    readers = _readers(deps, selection)
    found: list[Floats] = []
    for index in range(len(selection.blocks)):
        kept = selection.kept_scores(index)
        if currency == "sum":
            found.append((kept[-1] - kept) / whole)
        else:
            share = kept / kept[-1] if kept[-1] > 0 else np.linspace(0.0, 1.0, len(kept))
            found.append(-readers[index] * np.log(np.maximum(share, _LEAST)))
    return found


def _readers(deps: ChannelDependencies, selection: Selection) -> Floats:
    """Count the weighted layers that read each block; at least a little, so that nothing goes for free."""
    block_of = np.full(len(deps.class_of) and int(deps.class_of.max()) + 1, -1, dtype=np.int64)
    for index, block in enumerate(selection.blocks):
        block_of[block.classes] = index
    in_front = np.arange(len(block_of))
    for cut in deps.cuts.values():
        in_front[deps.class_of[cut.atoms]] = deps.class_of[cut.source]
    found = np.full(len(selection.blocks), 1e-3)
    for use in deps.slices:
        if use.role is Role.CONSUMES and use.kind in _WEIGHTED and use.name not in deps.shared:
            classes: Ints = deps.class_of[use.atoms.ravel()]
            through: Ints = in_front[classes][in_front[classes] != classes]
            blocks: Ints = block_of[np.append(classes, through)]
            np.add.at(found, blocks[blocks >= 0], 1.0 / max(len(classes), 1))
    return found
