"""A user's own model: ``module.path:callable``, found, called, and its errors told as those of the user's code."""

from __future__ import annotations

import difflib
import importlib
import operator
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from .errors import SourceError

if TYPE_CHECKING:
    from torch import nn

CALLABLE: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@contextmanager
def importable(directory: Path) -> Generator[None]:
    """Let Python import from ``directory`` first, as it does when run there, and only for this while."""
    entry = str(directory)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def find_callable(text: str, directory: Path) -> object:
    """Return what ``module.path:callable`` names; ``directory`` is where Python looks first.

    Raises:
        SourceError: There is no such module or nothing of that name in it, or importing it fails.
    """
    path, _, attribute = text.partition(":")
    importlib.invalidate_caches()  # the file may be newer than the last look at the directory
    try:
        namespace = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(f"{error.name}.")):
            raise SourceError(
                f"there is no Python module '{error.name}'",
                where=text,
                hint=f"run from the directory that holds it (looked in {directory} and in the installed packages)",
            ) from error
        raise _failure(f"importing '{path}'", text, error) from error
    except (Exception, SystemExit) as error:
        raise _failure(f"importing '{path}'", text, error) from error
    try:
        return operator.attrgetter(attribute)(namespace)
    except AttributeError as error:
        public = [name for name, value in vars(namespace).items() if callable(value) and not name.startswith("_")]
        near = difflib.get_close_matches(attribute, public, n=3, cutoff=0.4) or sorted(public)[:5]
        raise SourceError(
            f"module '{path}' has no '{attribute}'",
            where=str(getattr(namespace, "__file__", None) or text),
            hint=f"it has {', '.join(near)}" if near else "it defines nothing that can be called",
        ) from error


def call(text: str, found: object) -> nn.Module:
    """Return the model that a callable makes.

    Raises:
        SourceError: It is none, it fails, or it makes something else.
    """
    from torch import nn

    if isinstance(found, nn.Module) or not callable(found):
        kind = "a model already" if isinstance(found, nn.Module) else f"a {type(found).__name__}"
        raise SourceError(
            f"'{text}' is {kind}, not a callable that returns a model",
            where=text,
            hint="wrap it in a function without arguments that returns the model",
        )
    try:
        module = cast("Callable[[], object]", found)()
    except (Exception, SystemExit) as error:
        raise _failure(f"calling '{text}' without arguments", text, error) from error
    if not isinstance(module, nn.Module):
        raise SourceError(
            f"'{text}' returned a {type(module).__name__}, not a torch.nn.Module", where=text, hint="return the model"
        )
    return module


def _failure(doing: str, text: str, error: BaseException) -> SourceError:
    """Report what the user's own code raised, and on which of its lines."""
    library = ("<frozen", sysconfig.get_path("stdlib"), str(Path(__file__).parent))
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(library) and "site-packages" not in f.filename]
    place = f"{own[-1].filename}, line {own[-1].lineno}" if own else text
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    detail = " ".join(str(error).split())
    return SourceError(
        f"{doing} failed: {type(error).__name__}" + (f": {detail[:300]}" if detail else ""),
        where=place,
        hint="run it in Python by itself first; --debug shows the whole traceback",
    )
