"""How much a channel matters: one criterion per file, one row in the catalogue below.

A criterion scores one tensor slice at a time; the prune pass averages the scores of all slices that a channel touches.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from ....compiler.errors import OptionError

if TYPE_CHECKING:
    from .base import Criterion

CRITERIA: Final[dict[str, tuple[str, str]]] = {
    "l1": ("l1:L1", "sum of absolute weights (Li et al. 2017)"),
    "l2": ("l2:L2", "Euclidean norm of the weights"),
    "bn-scale": ("bn_scale:BatchNormScale", "absolute scale of the following normalisation (Liu et al. 2017)"),
    "random": ("random:Random", "uniform noise, the control every criterion has to beat"),
}
"""Name -> (module:Class, one line)."""


def criterion(name: str) -> Criterion:
    """Return the criterion of this name.

    Raises:
        OptionError: There is none.
    """
    if name not in CRITERIA:
        raise OptionError(f"unknown criterion {name!r}", hint=f"one of {', '.join(CRITERIA)}")
    module, _, attribute = CRITERIA[name][0].partition(":")
    return getattr(import_module(f".{module}", __package__), attribute)()
