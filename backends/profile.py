"""Which operations are to blame where int8 is not faster than float32: times by kind of operation, side by side.

Engines fuse operations in float32 that they do not fuse in int8, convert between the two, and compute layers in float32
that they have no integer kernel for. All of that shows as kinds of operations that take longer, or run in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ..compiler.program import Program
from .engines.lower import is_quantized
from .engines.op_times import CONVOLUTION, LINEAR, OpTime

_WORTH_NAMING: Final = 0.03
"""Part of the float32 time from which on a kind that takes longer in int8 is named."""
_MOST: Final = 3
"""Kinds that are named, at most."""
_PLURALS: Final = {CONVOLUTION: "convolutions", LINEAR: "linear layers"}


@dataclass(frozen=True)
class KindTimes:
    """Operations of one kind, of the float32 network and of its int8 form."""

    kind: str
    float_ms: float
    int8_ms: float
    float_count: int
    int8_count: int
    in_float: int
    """How many of the int8 network's are computed in float32."""
    slowest: str
    """The int8 network's operation that takes longest."""
    slowest_ms: float

    @property
    def extra_ms(self) -> float:
        """Return how much longer int8 takes; below 0 it is faster."""
        return self.int8_ms - self.float_ms


@dataclass(frozen=True)
class Blame:
    """Where the time of an int8 network goes, beside that of the same network in float32."""

    kinds: tuple[KindTimes, ...]
    """What costs most more than in float32 first."""
    first_in_float: tuple[tuple[str, str], ...] = ()
    """Kind -> the int8 network's first layer of it that is computed in float32."""

    @property
    def float_ms(self) -> float:
        """Return the time of all float32 operations."""
        return sum(kind.float_ms for kind in self.kinds)

    @property
    def int8_ms(self) -> float:
        """Return the time of all operations of the int8 network."""
        return sum(kind.int8_ms for kind in self.kinds)

    @property
    def sentence(self) -> str:
        """Return which operations are to blame, for a person."""
        found = [k for k in self.kinds if k.extra_ms > _WORTH_NAMING * self.float_ms][:_MOST]
        parts = [
            f"{kind.kind} operations take {milliseconds(kind.extra_ms)} ms more than in float32 "
            f"({kind.int8_count} instead of {kind.float_count}; "
            f"the slowest {kind.slowest}, {milliseconds(kind.slowest_ms)} ms)"
            for kind in found
        ]
        first = dict(self.first_in_float)
        for kind in self.kinds:
            if kind.kind in _PLURALS and kind.in_float:
                parts.append(
                    f"{kind.in_float} of {kind.int8_count} {_PLURALS[kind.kind]} are computed in float32 "
                    f"(first {first.get(kind.kind, '')})"
                )
        if parts:
            return "; ".join(parts)
        largest = max(self.kinds, key=lambda k: k.int8_ms, default=None)
        if largest is None or not self.int8_ms:
            return "there are no operations to compare"
        return (
            f"no kind of operation takes longer than in float32; {largest.kind} operations take most of the time, "
            f"{milliseconds(largest.int8_ms)} of {milliseconds(self.int8_ms)} ms"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the form of reports."""
        return {
            "sentence": self.sentence,
            "float_ms": self.float_ms,
            "int8_ms": self.int8_ms,
            "kinds": [asdict(kind) for kind in self.kinds],
        }


def milliseconds(value: float) -> str:
    """Return a time for a person: two decimals, or three of small ones."""
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def blame(float_ops: Sequence[OpTime], int_ops: Sequence[OpTime]) -> Blame:
    """Compare the operations of a network in float32 with those of its int8 form, on one engine.

    Args:
        float_ops: What the float32 network takes, see :class:`.engines.base.Profiler`.
        int_ops: What the int8 network takes.
    """
    kinds: list[KindTimes] = []
    first: dict[str, str] = {}
    for kind in dict.fromkeys(op.kind for op in (*float_ops, *int_ops)):
        before = [op for op in float_ops if op.kind == kind]
        after = [op for op in int_ops if op.kind == kind]
        in_float = [op for op in after if op.precision != "int8"]
        slowest = max(after, key=lambda op: op.ms, default=None)
        if in_float:
            first[kind] = in_float[0].node
        kinds.append(
            KindTimes(
                kind,
                sum(op.ms for op in before),
                sum(op.ms for op in after),
                len(before),
                len(after),
                len(in_float),
                slowest.node if slowest is not None else "",
                slowest.ms if slowest is not None else 0.0,
            )
        )
    return Blame(tuple(sorted(kinds, key=lambda k: -k.extra_ms)), tuple(first.items()))


def float_form(integers: Program, others: Sequence[Program]) -> Program | None:
    """Return the float32 program with which to compare an int8 one: the one whose weights have the same shapes.

    Args:
        integers: The int8 program.
        others: Among which to look.

    Returns:
        The last of those that fit; the first of all where none does (the int8 program was pruned, and its float32 form
        is not there); ``None`` where none computes in float32, and where the program has no integers.
    """
    real = [other for other in others if not is_quantized(other)]
    if not real or not is_quantized(integers):
        return None
    wanted = _weights(integers)
    return next((other for other in reversed(real) if _weights(other) == wanted), real[0])


def _weights(program: Program) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in program.tensors() if tensor.ndim > 1}
