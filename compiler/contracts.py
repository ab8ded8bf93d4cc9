"""What modules promise about channels that are code to nobody but Python: one row per class.

A module with a contract is not traced. In the program of a model's regions stands, in its place, something that couples
the channels of what it is given and what it gives in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn


@dataclass(frozen=True, eq=False)
class Pooling:
    """A contract: every channel of the result pools that channel of the feature maps, which all have as many.

    The feature maps come as the first argument, one or several; of nothing else that is given are channels read.
    """

    features: Callable[[Any, Any], Sequence[Any]]
    """From the module and its first argument to the feature maps that it pools; the others it does not read."""

    def size(self, module: Any) -> tuple[int, int]:
        """Return the size that regions are pooled to."""
        size = module.output_size
        return (size, size) if isinstance(size, int) else (size[0], size[-1])


def _named(module: Any, first: Any) -> Sequence[Any]:
    return [x for name, x in first.items() if name in module.featmap_names]


def _only(module: Any, first: Any) -> Sequence[Any]:
    del module
    return [first]


CONTRACTS: Final[dict[str, Pooling]] = {
    "torchvision.ops.poolers.MultiScaleRoIAlign": Pooling(_named),
    "torchvision.ops.roi_align.RoIAlign": Pooling(_only),
    "torchvision.ops.roi_pool.RoIPool": Pooling(_only),
}
"""Qualified name of a class -> what its modules promise about channels."""


def contract_of(module: nn.Module) -> Pooling | None:
    """Return what the module's class promises; a subclass that computes something else promises nothing."""
    for kind in type(module).__mro__:
        found = CONTRACTS.get(f"{kind.__module__}.{kind.__qualname__}")
        if found is not None:
            return found if type(module).forward is kind.__dict__.get("forward") else None
    return None
