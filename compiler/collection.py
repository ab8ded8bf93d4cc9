"""Hold back the cyclic garbage collector while graphs are built.

What is built stays, so there is nothing to collect; but every few thousand new objects the collector would look through
all of torch's, which takes longer than the building itself.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Generator[None]:
    """Collect nothing inside; reference counting goes on, so tensors are freed as ever."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
