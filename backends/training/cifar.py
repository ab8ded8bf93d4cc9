"""CIFAR-10 and CIFAR-100 as their authors distribute them for Python, which torchvision unpacks as they are.

The files are pickles. They are read by an unpickler that makes arrays, dictionaries and lists, and refuses all else.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ...compiler.errors import SourceError

_LAYOUTS: Final = {
    "cifar-10-batches-py": ([f"data_batch_{n}" for n in range(1, 6)], "test_batch", b"labels", "batches.meta"),
    "cifar-100-python": (["train"], "test", b"fine_labels", "meta"),
}
"""Folder -> training files, test file, key of the labels, file of the class names."""
_ALLOWED: Final = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def find(data: str) -> Path | None:
    """Return the folder of a CIFAR in or at ``data``, if there is one."""
    folder = Path(data).expanduser()
    places = [folder, *(folder / name for name in _LAYOUTS)]
    return next((p for p in places if p.name in _LAYOUTS and (p / _LAYOUTS[p.name][1]).is_file()), None)


def read(folder: Path, *, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Read one split.

    Returns:
        Images uint8 [N, 3, 32, 32], labels int64 [N], class names.

    Raises:
        SourceError: A file is missing, damaged, or holds something else.
    """
    training, test, key, meta = _LAYOUTS[folder.name]
    images: list[Tensor] = []
    labels: list[int] = []
    for name in training if train else [test]:
        content = _load(folder / name)
        try:
            images.append(torch.from_numpy(np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32)))
            labels += [int(label) for label in content[key]]
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"not a file of CIFAR images: {error!r}", where=str(folder / name)) from error
    names = _load(folder / meta)
    found = names.get(b"label_names") or names.get(b"fine_label_names") or []
    return torch.cat(images), torch.tensor(labels), tuple(name.decode() for name in found)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _load(file: Path) -> Mapping[bytes, Any]:
    try:
        return _Unpickler(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=str(file)) from error
    except (pickle.UnpicklingError, EOFError, ValueError, ImportError, AttributeError, IndexError) as error:
        raise SourceError(f"not a file of CIFAR images: {error}", where=str(file), hint="unpack it again") from error
