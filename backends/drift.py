"""How far an artefact is off what its pipeline makes when it is run again, where that is not bit for bit the same.

Passes that fit weights to data sum in an order that depends on threads, libraries and processor, and iterate on what
was rounded. What they make elsewhere is as good, and not the same:

    |stored(x) - again(x)|  <=  SHARE |again(x) - original(x)|        Euclidean norms over all outputs

x: calibration data, or random where there were none. Measured on a small ResNet with and without vector instructions:
1e-6 of the output after ``reconstruct``, 0.005 after ``reconstruct-blocks``, which was 0.07 off the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..compiler.errors import ProofError
from ..compiler.program import Program
from ..passes.calibration import first_tensor, read

SHARE: Final = 0.25
"""Of the distance from the original that may lie between two runs of a pipeline."""
_IMAGES: Final = 128


@dataclass(frozen=True)
class Drift:
    """What differs between an artefact and its pipeline's result, made again."""

    tensors: int
    """How many tensors are not the same."""
    distance: float
    """Of the outputs, relative to the original's."""
    error: float
    """Distance of the result made again from the original, relative to the original."""

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        return asdict(self)


def different(stored: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors of equal shapes and types that do not hold the same, what differs most first."""
    found: dict[str, float] = {}
    for name, tensor in stored.items():
        other = made[name].cpu()
        if not torch.equal(tensor, other):
            size = float(other.double().norm())
            found[name] = float((tensor.double() - other.double()).norm()) / max(size, 1e-30)
    return sorted(found, key=lambda name: -found[name])


def measure(
    original: Program, made: nn.Module, stored: nn.Module, odd: list[str], data: Iterable[Any] | None, seed: int
) -> Drift:
    """Measure on calibration data, or on random inputs.

    Raises:
        ProofError: It is more than rounding explains.
    """
    off = far = size = 0.0
    for inputs in _inputs(original, data, seed):
        wanted, again, kept = (_answer(module, inputs) for module in (original.module, made, stored))
        off += float((kept - again).square().sum())
        far += float((again - wanted).square().sum())
        size += float(wanted.square().sum())
    scale = max(size, 1e-30) ** 0.5
    found = Drift(len(odd), off**0.5 / scale, far**0.5 / scale)
    if not found.distance <= SHARE * found.error:
        raise ProofError(
            f"{odd[0]!r} is not what the pipeline makes of the original: outputs differ by {found.distance:.2g} "
            f"of their size, where fitting again may explain {SHARE * found.error:.2g}"
        )
    return found


def _inputs(original: Program, data: Iterable[Any] | None, seed: int) -> list[tuple[Tensor, ...]]:
    if data is None:
        generator = torch.Generator().manual_seed(seed)
        shapes = [(*spec.shape,) for spec in original.inputs]
        data = [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(8)]
    found: list[tuple[Tensor, ...]] = []
    seen = 0
    for batch in read(data, original):
        if seen >= _IMAGES:
            break
        seen += len(batch.inputs[0])
        found.append(tuple(x.to(spec.dtype) for x, spec in zip(batch.inputs, original.inputs, strict=True)))
    return found


def _answer(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            return first_tensor(module(*(x.clone() for x in inputs))).double()
    finally:
        module.train(training)
