"""Everything that touches torchvision: importing it where its C++ operators do not load, and building its models.

torchvision from the package index may sit beside a CPU-only torch that its compiled operators were not linked against.
They then stay unloaded, and ``import torchvision`` ends in "operator torchvision::nms does not exist", because it
registers shape functions for two operators that nobody defined. Stand-ins defined beforehand cure that.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import threading
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import torchvision_ops
from .errors import MissingExtraError, SourceError
from .weights import file_sha256, read_state_dict

Shape = tuple[int, ...]

_LOCK = threading.Lock()
VIDEO_FRAMES = 16
FLOW_SIZE = 128
"""RAFT refuses images smaller than this."""
DEFAULT_SIZE = 224


def import_torchvision() -> ModuleType:
    """Return the torchvision module, with stand-ins for the operators that it cannot do without and could not load.

    May be called any number of times, from any thread, and after the user imported torchvision.

    Raises:
        MissingExtraError: torchvision is not installed.
        SourceError: torchvision does not import beside this torch.
    """
    with _LOCK:
        loaded = sys.modules.get("torchvision")
        if loaded is not None and hasattr(loaded, "models"):
            return loaded
        spec = importlib.util.find_spec("torchvision")
        if spec is None:
            raise MissingExtraError("torchvision is not installed", hint="pip install torchvision")
        try:
            stand_in = not _operators_load(importlib.util.module_from_spec(spec))
            if stand_in:
                torchvision_ops.define()
            module = importlib.import_module("torchvision")
            if stand_in:
                torchvision_ops.take_over()
        except Exception as error:
            _forget_torchvision()
            raise SourceError(
                f"torchvision does not import beside torch {torch.__version__}: {error}",
                hint="install the torchvision that was released with this torch",
            ) from error
        return module


@contextmanager
def usable() -> Generator[None]:
    """While code of a user runs: ``import torchvision`` works there wherever :func:`import_torchvision` does here."""
    with _LOCK:
        spec = None if "torchvision" in sys.modules else importlib.util.find_spec("torchvision")
        try:
            stand_in = spec is not None and not _operators_load(importlib.util.module_from_spec(spec))
        except Exception:  # it does not import at all, and will say so itself
            stand_in = False
        if stand_in:
            torchvision_ops.define()
    try:
        yield
    finally:
        if stand_in and hasattr(sys.modules.get("torchvision"), "models"):
            torchvision_ops.take_over()


def _operators_load(package: ModuleType) -> bool:
    """Ask torchvision's own loader whether its compiled operators load, without importing the whole package.

    A plain import tried first would not do: when it fails, some versions of torch keep the shape function that it
    registered for the missing operator, and refuse the next attempt to register it.
    """
    _forget_torchvision()  # left behind by an import that failed before we were asked
    sys.modules["torchvision"] = package
    try:
        return bool(importlib.import_module("torchvision.extension")._has_ops())
    finally:
        _forget_torchvision()


def _forget_torchvision() -> None:
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]


def has_model(name: str) -> bool:
    """Say whether the installed torchvision knows a model of this name."""
    return name in import_torchvision().models.list_models()


def model_names() -> tuple[str, ...]:
    """Return the names of all models of the installed torchvision."""
    return tuple(import_torchvision().models.list_models())


def named_weights(name: str) -> dict[str, Any]:
    """Return the published weights of model ``name``: their names -> members of torchvision's weights enum.

    A ``quantized_*`` model is built in floating point, so it takes the weights that its int8 weights were made from.
    The default weights come under ``"DEFAULT"`` too.
    """
    members: Any = import_torchvision().models.get_model_weights(name)
    default = members.DEFAULT
    if name.startswith("quantized_"):
        default = default.meta["unquantized"]
        members = type(default)
    return {**dict(members.__members__), "DEFAULT": default}


def file_name(member: Any) -> str:
    """Return the name under which a member of a weights enum is published."""
    return str(member.url).rsplit("/", 1)[-1]


def published_as(published: Mapping[str, Any], file: Path) -> Any:
    """Return the member of :func:`named_weights` that ``file`` is, by its name or its checksum, else ``None``.

    Raises:
        SourceError: The file cannot be read.
    """
    checksum = file_sha256(file)
    for member in published.values():
        # Published names end in the first digits of the file's SHA-256: resnet18-f37072fd.pth.
        digits = re.search(r"[-_]([0-9a-f]{8,})\.", file_name(member))
        if file.name == file_name(member) or (digits and checksum.startswith(digits[1])):
            return member
    return None


def cache_path(member: Any) -> Path:
    """Return where torch's hub keeps, or would keep, the file of a member of a weights enum."""
    return Path(torch.hub.get_dir()) / "checkpoints" / file_name(member)


def build_model(name: str, *, member: Any = None, file: Path | None = None) -> nn.Module:
    """Build a torchvision model; nothing is ever downloaded.

    Args:
        name: A name of ``torchvision.models.list_models()``.
        member: The weights to build for, a member of the model's weights enum; torchvision adapts some models to their
            weights (input transform, auxiliary heads, old key names). ``None``: random weights, drawn from torch's
            global generator.
        file: The file that holds the weights of ``member``.

    Raises:
        SourceError: The file cannot be read or does not fit.
    """
    models = import_torchvision().models
    options: dict[str, Any] = {"weights": member}
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    if "weights_backbone" in accepted:
        options["weights_backbone"] = None  # the default is a download
    if "quantize" in accepted:
        options["quantize"] = False
    with _reading_from(models.WeightsEnum, file), warnings.catch_warnings():
        # googlenet and inception announce a change of their default initialisation, which no user can act on here.
        warnings.filterwarnings("ignore", category=FutureWarning)
        try:
            return cast("nn.Module", models.get_model(name, **options))
        except RuntimeError as error:
            if file is None:
                raise
            reason = " ".join(str(error).split())
            raise SourceError(
                f"these weights do not fit {name}: {reason[:500]}", where=str(file), hint=f"use {file_name(member)}"
            ) from error


@contextmanager
def _reading_from(weights_enum: Any, file: Path | None) -> Generator[None]:
    """Make torchvision read published weights from ``file``, safely, where it would have used the network."""
    original = weights_enum.get_state_dict

    def get_state_dict(self: Any, *_: Any, **__: Any) -> Mapping[str, Tensor]:
        if file is None:
            raise SourceError(f"building this model would download {file_name(self)}")
        return read_state_dict(file)

    weights_enum.get_state_dict = get_state_dict
    try:
        yield
    finally:
        weights_enum.get_state_dict = original


def input_shapes(name: str, module: nn.Module, member: Any = None) -> tuple[Shape, ...]:
    """Return the shapes of a torchvision model's inputs, with batch size 1.

    The size is the one that the model was made for, or else the crop of its weights' transforms, or else 224. That also
    holds for segmentation, whose transforms only resize to 520: its models take any size, and small is quick.

    Args:
        name: The model's name.
        module: The model.
        member: The weights that it carries; ``None``: the default weights tell the size.
    """
    family = type(module).__module__
    if ".optical_flow" in family:
        return ((1, 3, FLOW_SIZE, FLOW_SIZE),) * 2
    size = getattr(module, "image_size", None)  # vision transformers take this size only
    if not isinstance(size, int):
        member = member or named_weights(name)["DEFAULT"]
        crop = getattr(member.transforms, "keywords", {}).get("crop_size", DEFAULT_SIZE)
        size = crop[0] if isinstance(crop, tuple | list) else crop
    size = int(cast("int", size))
    return ((1, 3, VIDEO_FRAMES, size, size),) if ".video" in family else ((1, 3, size, size),)


def preprocessing(member: Any) -> dict[str, Any] | None:
    """Return how images become inputs for published weights, as JSON-able data.

    Returns:
        ``{"resize": int, "crop": int, "interpolation": str, "mean": [3 floats], "std": [3 floats]}``, or ``None`` where
        the weights are not those of an image classifier.
    """
    transforms = member.transforms()
    if type(transforms).__name__ != "ImageClassification":
        return None
    return {
        "resize": transforms.resize_size[0],
        "crop": transforms.crop_size[0],
        "interpolation": transforms.interpolation.value,
        "mean": list(transforms.mean),
        "std": list(transforms.std),
    }


def class_name(name: str) -> str:
    """Return a class-like name for a model, in torchvision's own spelling: ``ResNet18`` for ``resnet18``."""
    members = type(named_weights(name)["DEFAULT"])
    return members.__name__.removesuffix("_Weights")
