"""How much a channel matters: one criterion per file, one row in the catalogue below.

``base`` says what a criterion is and what it may look at; ``docs/criteria.md`` lists formulas and papers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from ....compiler.errors import OptionError

if TYPE_CHECKING:
    from .base import Criterion

CRITERIA: Final[dict[str, tuple[str, str]]] = {
    "l1": ("l1:L1", "sum of absolute weights (Li et al. 2017)"),
    "l1-independent": ("l1_filter:Independent", "l1 of the filters alone"),
    "l1-greedy": ("l1_filter:Greedy", "l1 of the filters over the inputs that are left, layer by layer"),
    "l2": ("l2:L2", "Euclidean norm of the weights"),
    "fpgm": ("fpgm:GeometricMedian", "distance from the layer's other filters (He et al. 2019)"),
    "bn-scale": ("bn_scale:BatchNormScale", "absolute scale of the following normalisation (Liu et al. 2017)"),
    "taylor": ("taylor:Taylor", "first-order effect on the loss (Molchanov et al. 2019); needs data"),
    "fisher": ("fisher:Fisher", "second-order effect of the channel's mask (Liu et al. 2021); needs data"),
    "apoz": ("activation:NotZero", "share of activations that are not zero (Hu et al. 2016); needs data"),
    "mean-activation": ("activation:MeanActivation", "mean absolute activation; needs data"),
    "chip": ("chip:Chip", "independence of the feature maps (Sui et al. 2021); needs data"),
    "reconstruction": (
        "reconstruction:Reconstruction",
        "loss when the readers are refitted without the channel (optimal brain surgeon); needs data",
    ),
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
