"""The artefact directory: written whole or not at all, and read back.

Everything is written to a hidden sibling directory, synced and renamed. A run that was killed leaves such a sibling;
the next run removes it, or puts it back where it was the artefact that a forced run had just moved aside.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from torch import nn

from ..compiler import sources, user_code, vision
from ..compiler.errors import ArtefactError
from ..compiler.functional import HELPERS
from ..compiler.plan import Plan
from ..compiler.quantized import FAKE_QUANTIZED, QUANTIZED
from . import weights_file

Content = bytes | Callable[[Path], None]
"""What a file holds, or what writes it to the path that it is given."""

_MARKS = ("model.py", "plan.json", "report.json", "model.safetensors")
"""Files by which a directory is known to be an artefact, which ``force`` may replace."""

_DAY = 24 * 3600
_loads = itertools.count()


def check_writable(directory: Path, force: bool) -> None:
    """Raise before long work what :func:`write` would raise after it.

    Raises:
        ArtefactError: The directory exists (and is not to be replaced), or cannot be made.
    """
    directory = _absolute(directory)
    if directory.is_symlink() or directory.exists():
        if not directory.is_dir():
            raise ArtefactError(
                "the output exists and is not a directory", where=str(directory), hint="name another one"
            )
        if not force:
            raise ArtefactError(
                "the output directory exists already", where=str(directory), hint="name another one, or use --force"
            )
        if any(directory.iterdir()) and not any((directory / mark).is_file() for mark in _MARKS):
            raise ArtefactError(
                "the output directory holds other files than an artefact's, so it is not replaced",
                where=str(directory),
                hint="name another one, or empty it",
            )
    parent = directory.parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ArtefactError("the output directory cannot be made: no permission to write here", where=str(parent))


def write(directory: Path, files: Mapping[str, Content], *, force: bool) -> None:
    """Write an artefact, all of it or nothing.

    Args:
        directory: Where it will stand.
        files: Contents by name.
        force: Replace an artefact that stands there already.

    Raises:
        ArtefactError: The directory exists and ``force`` is false, or something cannot be written; nothing is left
            behind then, and what stood there still does.
    """
    directory = _absolute(directory)
    try:
        _clean_up(directory)
        check_writable(directory, force)
        made = _make_parents(directory.parent)
    except OSError as error:
        raise _failure(directory, error) from error
    work = directory.parent / _temporary(directory, "new")
    try:
        work.mkdir()
        for name, content in files.items():
            _write_file(work / name, content)
        _sync(work)
        _put_in_place(work, directory)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        for parent in reversed(made):
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise _failure(directory, error) from error
        raise


def load(directory: Path) -> nn.Module:
    """Return the module of an artefact, with its weights, in eval mode. Runs the artefact's ``model.py``.

    Raises:
        ArtefactError: A file is missing or damaged, or the weights do not fit the model.
    """
    directory = Path(directory)
    source = directory / "model.py"
    text = _read(source)
    module = ModuleType(f"secateur_artefact_{next(_loads)}")
    module.__file__ = str(source)
    # Registered, so that the classes can be found by name: by pickle, by torch.compile, by inspect.
    sys.modules[module.__name__] = module
    try:
        with _surroundings(directory, text):
            # Compiled here and not imported, which would leave a cache in the directory.
            exec(compile(text, str(source), "exec"), module.__dict__)
            _recognise_helpers(module, text)
            model = cast(nn.Module, getattr(module, module.__all__[0])())
    except Exception as error:
        del sys.modules[module.__name__]
        raise ArtefactError(
            f"model.py cannot be run: {type(error).__name__}: {error}",
            where=str(source),
            hint="write the artefact again",
        ) from error
    weights = directory / "model.safetensors"
    try:
        model.load_state_dict(weights_file.read(weights), strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ArtefactError(
            f"the weights do not fit the model: {' '.join(lines[1:3])}",
            where=str(weights),
            hint="write the artefact again",
        ) from error
    return model.eval()


@contextmanager
def _surroundings(directory: Path, text: str) -> Generator[None]:
    """Let a model.py that builds on code outside of it find that code: torchvision, or a module of the user's own."""
    file = directory / "report.json"
    record = sources.root(_read_json(file).get("source")) if file.is_file() else None
    if "import torchvision" in text:
        vision.import_torchvision()
    place = (record or {}).get("directory")
    with user_code.importable(Path(str(place))) if place is not None else nullcontext(), vision.usable():
        yield


def _recognise_helpers(module: ModuleType, text: str) -> None:
    """Put our own helpers in the place of the copies that a model.py carries, so that capture knows them again."""
    for helper in (*HELPERS, *QUANTIZED.values(), *FAKE_QUANTIZED.values()):
        if helper.__name__ in vars(module) and inspect.getsource(helper).rstrip() in text:
            setattr(module, helper.__name__, helper)


def read_plan(directory: Path) -> Plan:
    """Return the plan of an artefact.

    Raises:
        ArtefactError: ``plan.json`` is missing or damaged.
    """
    path = Path(directory) / "plan.json"
    data = _read_json(path)
    if data.get("format") != 1:
        raise ArtefactError(f"plan.json has format {data.get('format')!r}, known is 1", where=str(path))
    try:
        return Plan.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"plan.json is damaged: {type(error).__name__}: {error}", where=str(path)) from error


def read_report(directory: Path) -> dict[str, Any]:
    """Return the report of an artefact.

    Raises:
        ArtefactError: ``report.json`` is missing or damaged.
    """
    return _read_json(Path(directory) / "report.json")


# -- writing


def _absolute(directory: Path) -> Path:
    return Path(os.path.abspath(directory))


def _failure(directory: Path, error: OSError) -> ArtefactError:
    return ArtefactError(
        f"the artefact cannot be written: {error.strerror or error}",
        where=str(directory),
        hint="free some space, or choose a directory that you may write to",
    )


def _make_parents(parent: Path) -> list[Path]:
    """Make the missing directories above the artefact; return them, to be taken back if it comes to nothing."""
    missing: list[Path] = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    missing.reverse()
    for path in missing:
        path.mkdir(exist_ok=True)
    return missing


def _write_file(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        before = set(path.parent.iterdir())
        content(path)
        for written in set(path.parent.iterdir()) - before:  # some formats put weights into a second file
            with written.open("rb") as file:
                os.fsync(file.fileno())
    else:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    if os.name != "posix":  # elsewhere directories cannot be opened
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(work: Path, directory: Path) -> None:
    if not directory.exists():
        work.rename(directory)
    else:
        aside = directory.parent / _temporary(directory, "old")
        directory.rename(aside)
        try:
            work.rename(directory)
        except BaseException:
            aside.rename(directory)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _sync(directory.parent)


# -- what killed runs leave


def _temporary(directory: Path, kind: str) -> str:
    host = socket.gethostname().replace(".", "_")
    return f".{directory.name}.secateur-{kind}.{host}.{os.getpid()}.{secrets.token_hex(4)}"


def _stale(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yield the siblings that dead runs have left for this artefact, each with its kind."""
    if not directory.parent.is_dir():
        return
    host = socket.gethostname().replace(".", "_")
    for path in sorted(directory.parent.iterdir()):
        for kind in ("old", "new"):
            head = f".{directory.name}.secateur-{kind}."
            if path.name.startswith(head):
                owner, _, rest = path.name[len(head) :].partition(".")
                pid = rest.partition(".")[0]
                if owner == host and pid.isdecimal():
                    if not _alive(int(pid)):
                        yield path, kind
                elif time.time() - path.stat().st_mtime > _DAY:
                    yield path, kind


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _clean_up(directory: Path) -> None:
    for path, kind in list(_stale(directory)):
        if kind == "old" and not directory.exists():
            # Killed between two renames: this is the artefact itself.
            path.rename(directory)
        else:
            shutil.rmtree(path, ignore_errors=True)


# -- reading


def _read(path: Path) -> str:
    if not path.parent.is_dir():
        raise ArtefactError("there is no such artefact directory", where=str(path.parent))
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ArtefactError(f"the artefact has no {path.name}", where=str(path.parent)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path.name} cannot be read: {error}", where=str(path)) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ArtefactError(f"{path.name} is not valid JSON: {error}", where=str(path)) from error
    if not isinstance(data, dict):
        raise ArtefactError(f"{path.name} does not hold an object", where=str(path))
    return cast(dict[str, Any], data)
