"""secateur: a graph-rewriting pruning compiler for PyTorch vision models.

The public names are imported when they are first used, so that ``import secateur`` (and with it ``secateur --help``)
does not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backends.artefact import load
    from .backends.compile import compile
    from .backends.regional.prune import prune_regions
    from .compiler.analysis import analyze
    from .compiler.capture import trace
    from .compiler.errors import CompilerError
    from .compiler.program import Program

__version__ = "0.1.0"

__all__ = ["CompilerError", "Program", "__version__", "analyze", "compile", "load", "prune_regions", "trace"]

_PUBLIC = {
    "CompilerError": ".compiler.errors:CompilerError",
    "Program": ".compiler.program:Program",
    "analyze": ".compiler.analysis:analyze",
    "compile": ".backends.compile:compile",
    "load": ".backends.artefact:load",
    "prune_regions": ".backends.regional.prune:prune_regions",
    "trace": ".compiler.capture:trace",
}


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value: object = getattr(import_module(module, __name__), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
