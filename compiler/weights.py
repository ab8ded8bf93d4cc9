"""Reading weights: from safetensors, or from a checkpoint of torch without running the code that it may carry."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import SourceError

SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".pth.tar")
LISTED = 5
"""How many names of each kind of mismatch a message lists."""
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
_PREFIXES = ("module.", "_orig_mod.")
"""Put in front of every name by data parallelism and by torch.compile."""
_COUNTER = "num_batches_tracked"
_ORIGINAL_NAMES = "use the weights of this very model (`--weights none` starts from random ones)"


def is_weights_file(text: str) -> bool:
    """Say whether ``text`` names a file of weights, be it there or not, rather than published weights."""
    if text.lower() in ("none", "default"):
        return False
    return text.lower().endswith(SUFFIXES) or "/" in text or "\\" in text or Path(text).expanduser().is_file()


def find_file(text: str) -> Path:
    """Return the absolute path of a weights file.

    Raises:
        SourceError: There is no such file, or its suffix is none that we read.
    """
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        kind = "is a directory, not a weights file" if path.is_dir() else "there is no such weights file"
        raise SourceError(f"{text}: {kind}", where=str(path), hint=f"give a file: {', '.join(SUFFIXES)}")
    if not path.name.lower().endswith(SUFFIXES):
        raise SourceError(
            f"cannot tell what kind of weights '{path.name}' holds",
            where=str(path),
            hint=f"rename it to end in one of {', '.join(SUFFIXES)}",
        )
    return path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        SourceError: The file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def read_state_dict(path: Path) -> OrderedDict[str, Tensor]:
    """Read the tensors of a weights file, on the CPU, by name; wrappers such as ``{"state_dict": ...}`` are opened.

    Code that a pickle carries is never run: a file that needs it is refused.

    Raises:
        SourceError: The file is missing, unreadable, corrupt, refused, or holds no tensors by name.
    """
    if not path.is_file():
        raise SourceError("there is no such weights file", where=str(path), hint="check the path")
    if path.name.lower().endswith(".safetensors"):
        try:
            loaded = load_file(path)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise _unreadable(path, error) from error
        return _tensors(loaded, path)
    return _tensors(_unwrap(_unpickle(path)), path)


def _unpickle(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's doubts about the file's age; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            raise _unreadable(path, "it is not a checkpoint that torch.save wrote") from error
        raise SourceError(
            f"refused to read the weights: the file is a pickle that wants to run code, `{wanted[1]}`",
            where=str(path),
            hint="convert it to .safetensors where you trust it (load it with weights_only=False and hand its "
            "state_dict to safetensors.torch.save_file)",
        ) from error
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise SourceError(
                "refused to read the weights: the file is a TorchScript archive, which carries code",
                where=str(path),
                hint="convert it to .safetensors where you trust it (torch.jit.load, then save its state_dict with "
                "safetensors.torch.save_file)",
            ) from error
        raise _unreadable(path, error) from error
    # Junk makes the reader raise whatever its bytes lead to: KeyError, EOFError, OSError, ValueError and more.
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, reason: object) -> SourceError:
    text = " ".join(str(reason).split()) or type(reason).__name__
    if isinstance(reason, KeyError):
        text = "it is not a checkpoint that torch.save wrote"
    return SourceError(
        f"cannot read the weights: {text[:200]}",
        where=str(path),
        hint="the file may be damaged, cut short or of another kind: compare its size and checksum with its source",
    )


def _unwrap(loaded: object) -> object:
    """Open wrappers, however deep, until a mapping has tensors of its own."""
    while isinstance(loaded, Mapping):
        mapping = cast("Mapping[object, object]", loaded)
        inner = next((mapping[key] for key in _WRAPPERS if isinstance(mapping.get(key), Mapping)), None)
        if inner is None or any(isinstance(value, Tensor) for value in mapping.values()):
            break
        loaded = inner
    return loaded


def _tensors(loaded: object, path: Path) -> OrderedDict[str, Tensor]:
    if isinstance(loaded, Mapping):
        mapping = cast("Mapping[object, object]", loaded)
        found = OrderedDict((key, value) for key, value in mapping.items() if isinstance(value, Tensor))
        if found and all(isinstance(key, str) for key in found):
            state = cast("OrderedDict[str, Tensor]", found)
            _set_versions(state, _versions(mapping))
            return state
        content = f"a mapping with the keys {_some(str(key) for key in mapping)}" if mapping else "an empty mapping"
    else:
        content = f"an object of type {type(loaded).__name__}"
    raise SourceError(
        f"the file holds {content}, and no tensors by name",
        where=str(path),
        hint=f"save `model.state_dict()` itself, or under one of the keys {', '.join(_WRAPPERS)}",
    )


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a weights file into ``module``, in place; every parameter and buffer has to be there and to fit.

    A prefix that all names share because of data parallelism or torch.compile is dropped. Batch norm's counters of
    batches may be missing or left over: they play no part in inference.

    Raises:
        SourceError: The file cannot be read, or does not fit; the message counts and lists what does not.
    """
    target = module.state_dict()
    state = _strip_prefixes(read_state_dict(path), target)
    _fill_tied(state, target)
    problems = _mismatches(state, target)
    if not problems and _versions(state) is None:
        # safetensors keeps no format versions, and modules that had several take none for the oldest. The names and
        # shapes are those of today, so the version is too.
        _set_versions(state, _versions(target))
    try:
        # With problems we still try: a module may know how to read the names of its older versions.
        missing, unexpected = module.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError, TypeError) as error:
        if not problems:
            reason = " ".join(str(error).split())
            raise SourceError(
                f"the weights do not load: {reason[:500]}", where=str(path), hint=_ORIGINAL_NAMES
            ) from error
    else:
        if not _but_counters([*missing, *unexpected]):
            return
    raise SourceError(
        "the weights do not fit the model:" + "".join(f"\n    {line}" for line in problems),
        where=str(path),
        hint=_ORIGINAL_NAMES,
    )


def _strip_prefixes(state: OrderedDict[str, Tensor], target: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Drop prefixes that all names in the file have and the model's own names do not all have."""
    prefix = ""
    while True:
        found = next((p for p in _PREFIXES if all(name.startswith(prefix + p) for name in state)), None)
        if found is None or (target and all(name.startswith(prefix + found) for name in target)):
            break
        prefix += found
    if not prefix:
        return state
    stripped = OrderedDict((name.removeprefix(prefix), tensor) for name, tensor in state.items())
    versions = _versions(state)
    if versions is not None:
        # Modules' names carry no trailing dot; what stands above the prefix is the wrapper, and goes.
        kept = {f"{name}.".removeprefix(prefix): v for name, v in versions.items() if f"{name}.".startswith(prefix)}
        _set_versions(stripped, {name.removesuffix("."): version for name, version in kept.items()})
    return stripped


def _fill_tied(state: dict[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Give a tensor that the model holds under several names, and the file under one, all its names."""
    places: dict[tuple[int, Any], str] = {}
    for name, tensor in target.items():
        if name in state and tensor.data_ptr():  # no address on the meta device, nor of an empty tensor
            places[tensor.data_ptr(), tensor.shape] = name
    for name, tensor in target.items():
        twin = places.get((tensor.data_ptr(), tensor.shape))
        if name not in state and twin is not None:
            state[name] = state[twin]


def _mismatches(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    missing = _but_counters(name for name in target if name not in state)
    unexpected = _but_counters(name for name in state if name not in target)
    shapes = [
        f"{name} (file {_shape(state[name])}, model {_shape(target[name])})"
        for name in target
        if name in state and state[name].shape != target[name].shape
    ]
    kinds = (("missing in the file", missing), ("not in the model", unexpected), ("of another shape", shapes))
    return [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds if names]


def _but_counters(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.rpartition(".")[2] != _COUNTER]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return ", ".join(listed[:LISTED]) + more


def _versions(state: Mapping[Any, Any]) -> Mapping[str, Any] | None:
    """Return the format versions, by module name, that torch hangs on a state_dict."""
    return getattr(state, "_metadata", None)


def _set_versions(state: OrderedDict[str, Tensor], versions: Mapping[str, Any] | None) -> None:
    if versions is not None:
        state.__dict__["_metadata"] = OrderedDict(versions)
