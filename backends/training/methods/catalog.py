"""The table of training methods. Importing it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final

from ....compiler.errors import OptionError
from ....compiler.options import build_from, nearest
from ....compiler.spec import parse

if TYPE_CHECKING:
    from .base import Method


@dataclass(frozen=True)
class Entry:
    """A row."""

    target: str
    """``module:Class`` in this folder."""
    summary: str


METHODS: Final[dict[str, Entry]] = {
    "soft": Entry("soft:Soft", "soft filter pruning: zero the smallest filters after every epoch, let them come back"),
    "slim": Entry("slim:Slim", "network slimming: draw batch-norm scales to zero while training"),
    "frozen": Entry("frozen:Frozen", "keep channels that are zero at zero, while all others are trained"),
}


def build(text: str) -> tuple[Method, ...]:
    """Return the methods that a text names, in order: ``slim{s=1e-4}``.

    Raises:
        OptionError: A method or an option is unknown, or a value is malformed.
        PipelineSyntaxError: The text cannot be read.
    """
    found: list[Method] = []
    for spec in parse(text):
        if spec.name not in METHODS:
            raise OptionError(f"there is no training method '{spec.name}'", hint=nearest(spec.name, METHODS))
        module, _, attribute = METHODS[spec.name].target.partition(":")
        cls: type[Method] = getattr(import_module(f".{module}", __package__), attribute)
        found.append(build_from(cls, spec))
    return tuple(found)
