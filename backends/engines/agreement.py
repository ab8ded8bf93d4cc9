"""How far an engine is from torch: random batches through both, outputs compared element by element."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from ...compiler.errors import CompilerError
from ...compiler.program import Program

_DIFFERS: Final = 1e-3
"""An element differs when it is off by more than this part of the largest one: far above the noise of float32, and
below one step of an 8-bit output (at least 1/255 of its largest value)."""

_SEED: Final = 0


@dataclass(frozen=True)
class Agreement:
    """How far an engine's outputs are from those of torch for the same program, on a random batch."""

    max_difference: float
    """max |engine - torch|."""
    scale: float
    """max |torch|."""
    share_differing: float
    """Share of the output elements that are off by more than 1e-3 of ``scale``: by an integer step or more where the
    output is quantized."""
    relative_error: float
    """|engine - torch| / |torch|, Euclidean norms over all elements."""

    def to_json(self) -> dict[str, float]:
        """Return the form of reports."""
        return asdict(self)


def flatten(value: Any) -> list[Tensor]:
    """Return the tensors in what a model gives: tuples and lists in order, dicts in the order of insertion."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for inner in cast("Mapping[Any, Any]", value).values() for t in flatten(inner)]
    if isinstance(value, tuple | list):
        return [t for inner in cast("Sequence[Any]", value) for t in flatten(inner)]
    return []


def random_inputs(program: Program, batch: int | None = None, *, seed: int = _SEED) -> list[Tensor]:
    """Return one random batch: normal numbers, and zeros and ones where integers are wanted.

    Args:
        program: Whose inputs to make.
        batch: Size of axis 0 of every input; that of the example inputs by default.
        seed: Of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    made: list[Tensor] = []
    for spec in program.inputs:
        shape = spec.shape if batch is None or not spec.shape else (batch, *spec.shape[1:])
        if spec.dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator).to(spec.dtype))
        else:
            made.append(torch.randint(0, 2, shape, generator=generator).to(spec.dtype))
    return made


def compare(given: Sequence[Tensor], wanted: Sequence[Tensor]) -> Agreement:
    """Compare an engine's outputs with torch's.

    Raises:
        CompilerError: They are not as many, or not of the same shapes: the engine computes something else.
    """
    shapes = [tuple(t.shape) for t in given], [tuple(t.shape) for t in wanted]
    if shapes[0] != shapes[1]:
        raise CompilerError(f"the engine's outputs have the shapes {shapes[0]}, torch's {shapes[1]}")
    differing = elements = 0
    largest = scale = squares = total = 0.0
    for ours, theirs in zip(wanted, given, strict=True):
        a, b = ours.double(), theirs.double()
        if not a.numel():
            continue
        off = (a - b).abs().nan_to_num(nan=float("inf"))
        off[a.isnan() & b.isnan()] = 0.0
        peak = float(a.abs().nan_to_num(0.0).max())
        differing += int((off > _DIFFERS * peak).sum())
        elements += a.numel()
        largest, scale = max(largest, float(off.max())), max(scale, peak)
        squares += float(off.square().sum())
        total += float(a.nan_to_num(0.0).square().sum())
    error = (squares / total) ** 0.5 if total else float(squares > 0)
    return Agreement(largest, scale, differing / max(elements, 1), error)


def measure(
    program: Program,
    engine: Callable[..., list[Tensor]],
    reference: nn.Module,
    batch_sizes: Sequence[int | None] = (None,),
) -> Agreement:
    """Run an engine and torch on random batches of these sizes (``None``: the example inputs'); return the worst."""
    found: list[Agreement] = []
    for size in batch_sizes:
        inputs = random_inputs(program, size)
        with torch.inference_mode():
            wanted = flatten(reference(*inputs))
        found.append(compare(engine(*inputs), wanted))
    return max(found, key=lambda a: a.relative_error)
