"""Layer patterns: ``include=``, ``exclude=`` and ``layers=conv1:0.5,conv2:32,layer1.*:0.25``.

A number below 1 is the fraction of a layer's output channels that go, a whole one says how many. A pattern is a layer's
name, the name of a module that contains it, or a shell pattern. What is given for a layer holds for everything coupled
with it; an exact name outranks a pattern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from ...compiler.dependency import ChannelDependencies, ChannelGroup
from ...compiler.errors import OptionError
from ..patterns import matches


def check_patterns(patterns: Sequence[str], deps: ChannelDependencies, option: str) -> None:
    """Refuse patterns that match nothing.

    Raises:
        OptionError: Names the pattern and the nearest layers.
    """
    layers = [layer for group in deps.groups for layer in _layers(group)]
    for pattern in patterns:
        if not any(matches(pattern, layer) for layer in layers):
            near = get_close_matches(pattern, layers, n=3, cutoff=0.4)
            raise OptionError(
                f"{option} names no layer: {pattern!r}",
                hint=f"nearest: {', '.join(near)}" if near else "`secateur inspect` lists the layers",
            )


def is_frozen(group: ChannelGroup, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Tell whether the options leave a group as it is: any layer excluded, or not all included."""
    layers = _layers(group)
    if any(matches(p, layer) for p in exclude for layer in layers):
        return True
    return bool(include) and not all(any(matches(p, layer) for p in include) for layer in layers)


def _layers(group: ChannelGroup) -> tuple[str, ...]:
    """Return what patterns call a group: no layer gives the channels behind a cut, so its first reader."""
    return group.layers or (group.name.rpartition(".")[0],)


def parse_layers(text: str) -> dict[str, float]:
    """Read ``conv1:0.5,conv2:32,layer1.*:0.25``: fractions and counts of what is removed.

    Raises:
        ValueError: Not of that form, or out of range.
    """
    found: dict[str, float] = {}
    for item in text.split(","):
        pattern, colon, number = item.rpartition(":")
        try:
            ratio = float(number)
        except ValueError:
            colon = ""
            ratio = 0.0
        if not colon or not pattern or not (0.0 <= ratio < 1.0 or ratio == ratio // 1 > 0):
            raise ValueError(f"expected layer:fraction (0 <= fraction < 1) or layer:count, found {item!r}")
        if pattern in found:
            raise ValueError(f"{pattern!r} is given twice")
        found[pattern] = ratio
    return found


def format_layers(layers: Mapping[str, float]) -> str:
    """Print what :func:`parse_layers` reads."""
    return ",".join(f"{pattern}:{ratio:g}" for pattern, ratio in layers.items())


def ratio_for(group: ChannelGroup, layers: Mapping[str, float]) -> float | None:
    """Return the fraction to remove from a group; ``None`` when no pattern means any of its layers.

    Raises:
        OptionError: Coupled layers are given different numbers by equally exact patterns, or more channels are to go
            than a layer has.
    """
    exact = {p: r for p, r in layers.items() if p in group.layers}
    loose = {p: r for p, r in layers.items() if any(matches(p, layer) for layer in group.layers)}
    chosen = exact or loose
    if len(set(chosen.values())) > 1:
        given = ", ".join(f"{p}:{r:g}" for p, r in chosen.items())
        raise OptionError(
            f"coupled layers are given different numbers: {given}",
            where=f"group {group.name}: {', '.join(group.layers[:6])}{' ...' if len(group.layers) > 6 else ''}",
            hint="give them the same number, or name one layer of the group exactly",
        )
    number = next(iter(chosen.values())) if chosen else None
    if number is None or number < 1.0:
        return number
    if number >= group.width:
        raise OptionError(
            f"{number:g} channels cannot go: there are {group.width}, and one stays at least",
            where=f"group {group.name}",
            hint=f"{next(iter(chosen))}:{group.width - 1} at most",
        )
    return number / group.width
