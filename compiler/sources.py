"""Where models come from: MODEL and ``--weights``, as text, to a module, and back again from a recorded spec.

Nothing is downloaded and nothing is written. Importing this file imports neither torch nor torchvision, so that
:func:`list_models` answers at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from . import examples, user_code, zoo
from .errors import SourceError

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["torchvision", "callable", "example", "zoo"]
Shape = tuple[int, ...]

_NAMES_FILE = Path(__file__).with_name("torchvision_models.txt")
_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".pth.tar", ".pt2", ".onnx")
_KINDS = "a name (torchvision, zoo, example), `module.path:callable` or an artefact directory"
_DEFAULT_SIZE, _DEFAULT_FRAMES, _DEFAULT_VIDEO_SIZE = 224, 16, 112


@dataclass(frozen=True, eq=False)
class ModelSource:
    """A model, and everything needed to build the same model again.

    Attributes:
        module: The model in eval mode, on the CPU unless the user's callable put it elsewhere.
        name: Short name: ``resnet18``, ``digits``, the last part of a callable's name.
        class_name: A Python class name for it: ``ResNet18``.
        kind: Where it comes from.
        input_shapes: Default shapes of its inputs, with batch size 1; one that ``--input`` overrides.
        spec: JSON-able record that :func:`rebuild` turns into the same model.
        example: Data and facts of an embedded example, else ``None``.
        preprocess: How images become inputs for published weights (see ``vision.preprocessing``), else ``None``.
    """

    module: nn.Module
    name: str
    class_name: str
    kind: Kind
    input_shapes: tuple[Shape, ...]
    spec: dict[str, Any]
    example: examples.Example | None = None
    preprocess: dict[str, Any] | None = None


def list_models() -> dict[str, tuple[str, ...]]:
    """Return the names of models by group, without importing torch.

    The groups are ``examples``, ``zoo`` and ``torchvision``.
    torchvision's are those of the newest supported version; an older one may lack some.
    """
    torchvision = tuple(_NAMES_FILE.read_text("utf-8").split())
    return {"examples": examples.names(), "zoo": zoo.names(), "torchvision": torchvision}


def is_artefact(model: str) -> bool:
    """Say whether MODEL is a directory that ``compile`` wrote; a model's name wins over a directory of that name."""
    known = any(model in names for names in list_models().values())
    return not known and (Path(model).expanduser() / "plan.json").is_file()


def resolve(model: str, *, weights: str | None = None, seed: int = 0) -> ModelSource:
    """Find or build a model.

    Args:
        model: A torchvision name, the name of an embedded example or of a network of the zoo, which may be followed by
            options (``cifar-vgg16{classes=100}``), or ``module.path:callable``, whose module is looked
            up in the current directory too and whose callable returns the model when called without arguments.
        weights: ``"none"``: random weights, or for a callable those it returned. ``"default"``: the weights that belong
            to the model. A name of published weights, such as ``"IMAGENET1K_V1"``. Or a file. ``None`` stands for
            ``"default"`` with an example and for ``"none"`` with everything else.
        seed: Determines random weights; torch's global generators are left as they were.

    Raises:
        SourceError: The model or its weights cannot be found, built, read or matched.
    """
    if model in examples.names():
        return _from_example(model, weights or "default", seed)
    if model in list_models()["torchvision"]:
        return _from_torchvision(model, weights or "none", seed)
    if zoo.is_name(model):
        return _from_zoo(model, weights or "none", seed)
    _refuse_path(model)
    if user_code.CALLABLE.fullmatch(model):
        return _from_callable(model, weights or "none", seed, Path.cwd())
    from . import vision

    # A newer torchvision than the list that we ship may know it.
    if vision.has_model(model):
        return _from_torchvision(model, weights or "none", seed)
    names = [*examples.names(), *zoo.names(), *vision.model_names()]
    near = difflib.get_close_matches(model.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else f"MODEL is {_KINDS}. "
    raise SourceError(f"no model is called '{model}'", hint=f"{hint}`secateur list models` lists all names")


def rebuild(spec: Mapping[str, Any], *, weights: str | None = None) -> ModelSource:
    """Build the model again that a :class:`ModelSource` recorded in its ``spec``.

    Args:
        spec: What was recorded, as is or after a trip through JSON.
        weights: Where the weights file is now, if it has moved.

    Raises:
        SourceError: The spec is malformed, or the model or its weights are gone or have changed.
    """
    try:
        kind, model, recorded, seed = spec["kind"], spec["model"], spec["weights"], int(spec["seed"])
        checksum, directory = spec.get("weights_sha256"), Path(spec.get("directory", "."))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"cannot read the record of the model: {error!r}", hint="compile the model again") from error
    text = str(spec.get("weights_file", recorded) if weights is None else weights)
    if kind == "example":
        source = _from_example(model, text, seed)
    elif kind == "torchvision":
        source = _from_torchvision(model, text, seed, member_name=spec.get("member"))
    elif kind == "zoo":
        source = _from_zoo(model, text, seed)
    elif kind == "callable":
        source = _from_callable(model, text, seed, directory)
    else:
        raise SourceError(f"the record of the model is of an unknown kind, '{kind}'", hint="compile the model again")
    if source.spec.get("weights_sha256") != checksum:
        raise SourceError(
            f"the weights of {model} are not those that were recorded",
            where=str(source.spec.get("weights_file", model)),
            hint=f"find the file with the SHA-256 {checksum}, or compile the model again",
        )
    return source


def root(spec: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the record of what a chain of artefacts begins with; ``None`` if that was a model in memory."""
    while spec is not None and spec.get("kind") in ("artefact", "trained"):
        spec = spec.get("source")
    return spec


def _from_example(name: str, weights: str, seed: int) -> ModelSource:
    from .weights import file_sha256

    example = examples.load(name)
    file: Path | None = None
    module = example.module
    if weights.lower() == "default":
        checksum = file_sha256(examples.weights_file(name))
    else:
        file = _weights_file(name, weights)
        with _seeded(seed):
            module = examples.build(name)
        checksum = _load(module, file)
    return ModelSource(
        module=module.eval(),
        name=name,
        class_name=name.capitalize(),
        kind="example",
        input_shapes=(example.input_shape,),
        spec=_spec("example", name, weights, seed, file, checksum),
        example=example,
    )


def _from_torchvision(name: str, weights: str, seed: int, *, member_name: str | None = None) -> ModelSource:
    from . import vision
    from . import weights as files

    if not vision.has_model(name):
        version = vision.import_torchvision().__version__
        raise SourceError(f"torchvision {version} has no model '{name}'", hint="install a newer torchvision")
    published = vision.named_weights(name)
    member: Any = None
    file: Path | None = None
    if files.is_weights_file(weights):
        file = files.find_file(weights)
        # torchvision adapts some models to their published weights, so find out whether these are published ones.
        member = published.get(member_name or "") or vision.published_as(published, file)
    elif weights.lower() != "none":
        member = published.get(weights.rpartition(".")[2].upper())
        if member is None:
            raise SourceError(
                f"{name} has no published weights '{weights}'",
                hint=f"none, default, {', '.join(key for key in published if key != 'DEFAULT')}, or a file",
            )
        file = vision.cache_path(member)
        if not file.is_file():
            raise SourceError(
                f"the weights {member.name} of {name} are not on this machine, and secateur downloads nothing",
                where=str(file),
                hint=f"put {file.name} there, or use `--weights FILE`; it is published at {member.url}",
            )
    with _seeded(seed):
        module = vision.build_model(name, member=member, file=file if member else None)
    checksum = files.file_sha256(file) if member and file else _load(module, file)
    spec = _spec("torchvision", name, weights, seed, file, checksum)
    if member is not None:
        spec["member"] = member.name
    return ModelSource(
        module=module.eval(),
        name=name,
        class_name=vision.class_name(name),
        kind="torchvision",
        input_shapes=vision.input_shapes(name, module, member),
        spec=spec,
        preprocess=vision.preprocessing(member) if member else None,
    )


def _from_zoo(text: str, weights: str, seed: int) -> ModelSource:
    network, file = zoo.network(text), _weights_file(text, weights)
    with _seeded(seed):
        module = network.build()
    return ModelSource(
        module=module.eval(),
        name=text.partition("{")[0],
        class_name=type(module).__name__,
        kind="zoo",
        input_shapes=(network.input_shape,),
        spec=_spec("zoo", text, weights, seed, file, _load(module, file)),
    )


def _from_callable(text: str, weights: str, seed: int, directory: Path) -> ModelSource:
    from . import vision

    file = _weights_file(text, weights)
    with user_code.importable(directory), vision.usable():
        # Seeded apart, for a module is executed once only, and what it draws must not shift what the callable draws.
        with _seeded(seed):
            found = user_code.find_callable(text, directory)
        with _seeded(seed):
            module = user_code.call(text, found)
    checksum = _load(module, file)
    name = text.rpartition(":")[2].rpartition(".")[2]
    words = [word for word in name.split("_") if word]
    return ModelSource(
        module=module.eval(),
        name=name,
        class_name="".join(word[:1].upper() + word[1:] for word in words),
        kind="callable",
        input_shapes=_guess_shapes(module),
        spec={**_spec("callable", text, weights, seed, file, checksum), "directory": str(directory)},
    )


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Seed torch's generators for a while, and put them back as they were."""
    import torch

    # Seeding CUDA before it is in use would leave its seed behind for whoever starts it.
    cuda = torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if cuda else []):
        (torch.manual_seed if cuda else torch.default_generator.manual_seed)(seed)
        yield


def _weights_file(model: str, weights: str) -> Path | None:
    """Return the file for a model without published weights, ``None`` for ``"none"``."""
    from . import weights as files

    if weights.lower() == "none":
        return None
    if not files.is_weights_file(weights):
        choices = "default, none" if model in examples.names() else "none"
        raise SourceError(f"{model} has no published weights '{weights}'", hint=f"{choices}, or a file")
    return files.find_file(weights)


def _load(module: nn.Module, file: Path | None) -> str | None:
    """Load a file, if there is one, and return its checksum."""
    from .weights import file_sha256, load_weights

    if file is None:
        return None
    load_weights(module, file)
    return file_sha256(file)


def _spec(kind: Kind, model: str, weights: str, seed: int, file: Path | None, checksum: str | None) -> dict[str, Any]:
    spec: dict[str, Any] = {"kind": kind, "model": model, "weights": weights, "seed": seed}
    if file is not None:
        spec["weights_file"] = str(file)
    if checksum is not None:
        spec["weights_sha256"] = checksum
    return spec


def _guess_shapes(module: nn.Module) -> tuple[Shape, ...]:
    """Guess the input of a user's model: what it says of itself, else what its first layer takes, at a common size."""
    from torch import nn

    # timm's models carry this record.
    record = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    size = record.get("input_size") if isinstance(record, Mapping) else None
    if isinstance(size, tuple | list) and size:
        return ((1, *(int(side) for side in cast("tuple[int, ...]", size))),)
    side = getattr(module, "image_size", None)
    side = side if isinstance(side, int) else _DEFAULT_SIZE
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d):
            return ((1, layer.in_channels, _DEFAULT_FRAMES, _DEFAULT_VIDEO_SIZE, _DEFAULT_VIDEO_SIZE),)
        if isinstance(layer, nn.Conv2d):
            return ((1, layer.in_channels, side, side),)
        if isinstance(layer, nn.Linear):
            return ((1, layer.in_features),)
    return ((1, 3, side, side),)


def _refuse_path(model: str) -> None:
    """Explain a MODEL that is a path; artefact directories are the caller's to load."""
    path = Path(model).expanduser()
    where = str(path.absolute())
    if path.is_dir() and (path / "plan.json").is_file():
        raise SourceError(f"'{model}' is an artefact, and an original model is needed here", where=where, hint=_KINDS)
    if path.is_dir():
        raise SourceError(
            f"the directory '{model}' has no plan.json, so it is no artefact",
            where=where,
            hint="give the directory that `secateur compile -o` wrote",
        )
    if model.lower().endswith(_WEIGHT_SUFFIXES):
        raise SourceError(
            f"'{model}' names a file, and a file of weights does not say what model they belong to",
            where=where,
            hint="name the model, and give the file as --weights FILE",
        )
    file, _, attribute = model.partition(":")
    if file.endswith(".py"):
        dotted = re.sub(r"[\\/]", ".", file.removesuffix(".py").lstrip("./\\"))
        raise SourceError(
            f"'{model}' is a path, and a model of your own is given as `module.path:callable`",
            where=where,
            hint=f"{dotted}:{attribute or 'CALLABLE'}",
        )
    if "/" in model or "\\" in model or path.exists():
        raise SourceError(f"'{model}' is no artefact directory", where=where, hint=f"MODEL is {_KINDS}")
