"""Which numbers of a block become constructor parameters, and what they are called."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .syntax import MISSING, Slot

_LONGEST = 32
"""Characters in a parameter's name, if it can be helped."""

_SHORTCUTS = frozenset({"downsample", "shortcut", "skip", "identity", "residual"})


@dataclass(frozen=True, eq=False)
class Parameter:
    """A constructor parameter of a class."""

    name: str
    values: tuple[Any, ...]
    """One for each block that is an instance of the class."""
    members: frozenset[int]
    """Indices of the slots that it fills."""
    default: Any
    channels: bool
    stored: bool
    """Read by ``forward``, so kept as an attribute."""

    @property
    def annotation(self) -> str:
        """Return the type that its values have."""
        return " | ".join(sorted({_type_name(v) for v in self.values} | _default_type(self.default)))


def _default_type(default: Any) -> set[str]:
    return set() if default is MISSING else {_type_name(default)}


def _type_name(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}[int, ...]" if isinstance(value, tuple) else "list[int]"
    return type(value).__name__ if isinstance(value, bool | int | float | str) else "object"


def parameters(rows: Sequence[Sequence[Slot]], originals: Sequence[Mapping[str, Any]]) -> list[Parameter]:
    """Return the parameters of a class.

    Args:
        rows: The slots of every block that is an instance, in the same order for all.
        originals: The attributes of the module that each block was, to borrow names from.
    """
    first = rows[0]
    columns = [tuple(row[i].value for row in rows) for i in range(len(first))]
    groups: dict[tuple[str, str], list[int]] = {}
    for i, column in enumerate(columns):
        if len({repr(v) for v in column}) > 1:
            kind = "channels" if first[i].channels else first[i].argument
            groups.setdefault((kind, repr(column)), []).append(i)
    wanted = _names(list(groups.values()), rows, columns, originals)
    found: list[Parameter] = []
    for indices, chosen in zip(groups.values(), wanted, strict=True):
        members = [first[i] for i in indices]
        defaults = {repr(s.default) for s in members}
        default = members[0].default
        if len(defaults) > 1 or default not in columns[indices[0]]:
            default = MISSING
        channels = members[0].channels
        stored = any(s.forward for s in members)
        found.append(Parameter(chosen, columns[indices[0]], frozenset(indices), default, channels, stored))
    return sorted(found, key=lambda p: p.default is not MISSING)


def _names(
    groups: Sequence[Sequence[int]],
    rows: Sequence[Sequence[Slot]],
    columns: Sequence[tuple[Any, ...]],
    originals: Sequence[Mapping[str, Any]],
) -> list[str]:
    first = rows[0]
    wide = [i for i, slot in enumerate(first) if slot.channels and not slot.argument.endswith("groups")]
    trunk = [i for i in wide if first[i].layer.partition(".")[0] not in _SHORTCUTS] or wide
    entry = next((i for i in trunk), None)
    exits = [i for i in trunk if not first[i].argument.startswith("in_")]
    leave = exits[-1] if exits else None
    hidden = [
        g for g in groups if first[g[0]].channels and entry not in g and leave not in g and any(i in wide for i in g)
    ]
    # Of a squeeze and an expansion, the expansion is the block's hidden width.
    produced = [g for g in hidden if any(first[i].argument.startswith("out") for i in g)]
    main = next(iter(hidden if len(hidden) == 1 else produced if len(produced) == 1 else []), None)
    found: list[str] = []
    for group in groups:
        slot = first[group[0]]
        wanted = ""
        if slot.channels and any(i in wide for i in group):
            if entry in group and leave in group:
                wanted = "channels"
            elif entry in group:
                wanted = "in_channels"
            elif leave in group:
                wanted = "out_channels"
            elif group is main:
                wanted = "hidden_channels"
            else:
                best = next((first[i] for i in group if first[i].argument.startswith("out")), slot)
                wanted = _by_layer(best, found)
        else:
            wanted = _borrowed(columns[group[0]], originals) if slot.forward else ""
            others = [g for g in groups if g is not group and first[g[0]].argument == slot.argument]
            wanted = wanted or (
                slot.argument if not others and not slot.argument.startswith("arg") else _by_layer(slot, found)
            )
        found.append(_free(wanted, found))
    return found


def _by_layer(slot: Slot, taken: Sequence[str]) -> str:
    """Return ``conv1_out`` for the number of channels that ``conv1`` puts out."""
    parts: list[str] = []
    for part in filter(None, re.split(r"\W+", slot.layer)):
        if part.isdecimal() and parts:
            parts[-1] += f"_{part}"
        else:
            parts.append(part)
    if slot.owner and slot.layer.rpartition(".")[2].isdecimal():
        parts[-1] = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", slot.owner).lower()
    argument = re.sub(r"^(in|out)_(channels|features)$", r"\1", slot.argument)
    argument = re.sub(r"^(channels|num_features|num_channels|normalized_shape)$", "channels", argument)
    argument = re.sub(r"^hidden_channels$", "hidden", argument)
    # As much of the path as it takes to tell it from the others.
    names = ["_".join([*parts[-count:], argument]) for count in range(1, len(parts) + 1)] or [slot.argument]
    chosen = next((n for n in names if n not in taken), names[-1])
    return chosen if len(chosen) <= _LONGEST else "_".join(chosen.split("_")[-3:])


def _borrowed(column: tuple[Any, ...], originals: Sequence[Mapping[str, Any]]) -> str:
    """Return the attribute that had these values in the original modules."""
    for attribute in originals[0]:
        if attribute.isidentifier() and not attribute.startswith("_"):
            theirs = [o.get(attribute, MISSING) for o in originals]
            if all(_plain(a) == _plain(b) for a, b in zip(theirs, column, strict=True)):
                return attribute
    return ""


def _plain(value: Any) -> str:
    return repr(tuple(value) if isinstance(value, list) else value)


def _free(wanted: str, taken: Sequence[str]) -> str:
    if not wanted.isidentifier() or keyword.iskeyword(wanted):
        wanted = "n_" + re.sub(r"\W", "_", wanted)
    fresh, number = wanted, 2
    while fresh in taken or fresh in {"self", "training"}:
        fresh, number = f"{wanted}_{number}", number + 1
    return fresh
