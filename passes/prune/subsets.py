"""What can stay behind cuts, given what stays in front of them, and the other way round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .cuts import Opened, Uses

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Subsets:
    """How what stays behind cuts depends on what stays in front of them, and the other way round."""

    inner: Ints
    outer: Ints
    """inner[i] can stay only where outer[i] does."""
    behind: tuple[Ints, ...]
    """Per cut: the classes behind it."""
    followers: Bools
    """[classes]: in front of cuts, and read through them only, so that they go when nobody wants them."""

    @staticmethod
    def of(opened: Opened) -> Subsets:
        """Read them off."""
        deps = opened.deps
        uses = Uses(opened.program, deps)
        cuts = deps.cuts.values()
        pairs = np.unique(
            np.concatenate([np.stack([deps.class_of[c.atoms], deps.class_of[c.source]]) for c in cuts], axis=1), axis=1
        )
        bound = [deps.class_of[b.cells.ravel()] for b in deps.balances if b.cells.shape[1] > 1]
        norms = [deps.class_of[atoms.ravel()] for atoms in deps.norms.values()]
        stays = uses.mask([*bound, *norms]) | uses.pinned | (uses.readers > 0)
        behind = tuple(deps.class_of[cut.atoms] for cut in cuts)
        return Subsets(pairs[0], pairs[1], behind, uses.mask([pairs[1]]) & ~stays)

    def allowed(self, kept: Bools) -> Bools:
        """Return the classes that may stay, by what stays in front of cuts."""
        found = np.ones_like(kept)
        np.logical_and.at(found, self.inner, kept[self.outer])
        return found

    def seen_from_the_front(self, scores: Floats, *, add: bool) -> Floats:
        """Let channels in front of cuts have what is said of them behind: what goes there is missed here.

        Args:
            scores: [classes].
            add: Whether scores are losses, which add up; else the mean of all that is said counts.
        """
        total, said = scores.copy(), np.ones(len(scores))
        np.add.at(total, self.outer, scores[self.inner])
        np.add.at(said, self.outer, 1.0)
        return total if add else total / said

    def unread(self, kept: Bools) -> Bools:
        """Return the classes that nobody reads any more."""
        wanted = ~self.followers
        np.logical_or.at(wanted, self.outer, kept[self.inner])
        return ~wanted
