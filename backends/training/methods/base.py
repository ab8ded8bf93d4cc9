"""What a training method is: options as text, a callback for the loop, and what the compiler does with the result."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from ..callback import Callback


class Method(Protocol):
    """A frozen dataclass, whose fields are its options."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    kind: ClassVar[str]
    pipeline: ClassVar[str]
    """Passes that run on the trained network; empty where it stays as it is."""

    def callback(self) -> Callback:
        """Return what hooks into the loop: a new one for every run."""
        ...
