"""What makes a pruned model another one than its builder builds: classes, attributes and shapes, layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor, nn

from ...compiler.errors import CompilerError

Shape = tuple[int, ...]
_OF_TORCH: Final = frozenset(vars(nn.Module())) - {"training"}
_PLAIN: Final = (bool, int, float, str, type(None))


@dataclass
class Layer:
    """How one module differs."""

    kind: str | None = None
    """Qualified name of its class, if that is another one: then everything it has is listed."""
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])
    """Plain values."""
    parameters: dict[str, Shape] = field(default_factory=dict[str, Shape])
    """Those of another shape."""
    buffers: dict[str, Shape] = field(default_factory=dict[str, Shape])
    dtypes: dict[str, str] = field(default_factory=dict[str, str])
    """Of those that are not there as built: all of them, where the class is another one."""

    def __bool__(self) -> bool:
        """Tell whether it differs at all."""
        return bool(self.kind or self.attributes or self.parameters or self.buffers)


@dataclass
class Differences:
    """How a model differs from what its builder builds."""

    layers: dict[str, Layer] = field(default_factory=dict[str, Layer])
    removed: list[str] = field(default_factory=list[str])
    """Submodules that it has not."""
    gradients: dict[str, bool] = field(default_factory=dict[str, bool])
    """Parameters, and whether they are trained, if others are in what the builder builds."""
    ties: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Names of parameters that are one, of which at least one has another shape."""


def compare(built: nn.Module, model: nn.Module, rewritten: Collection[str] = ()) -> Differences:
    """Return what has to be changed in a fresh model so that the weights of another one fit it.

    Args:
        built: As the builder builds it.
        model: As it should be.
        rewritten: Paths of submodules whose class is a subclass with a forward of its own, which is written elsewhere.

    Raises:
        CompilerError: The difference is more than classes of single layers, plain attributes and shapes.
    """
    found = Differences()
    theirs = dict(built.named_modules(remove_duplicate=False))
    mine = dict(model.named_modules(remove_duplicate=False))
    extra = next((path for path in mine if path not in theirs), None)
    if extra is not None:
        raise _inexpressible(extra, "is not there in the original")
    missing = [path for path in theirs if path not in mine]
    found.removed = [path for path in missing if path.rpartition(".")[0] not in missing]
    for path, module in mine.items():
        kind = type(module).__mro__[1] if path in rewritten else type(module)
        layer = _layer(theirs[path], module, kind, path)
        if layer:
            found.layers[path] = layer
    trained = {name: p.requires_grad for name, p in built.named_parameters(remove_duplicate=False)}
    names: dict[int, str] = {}
    changed = {f"{path}.{name}" for path, layer in found.layers.items() for name in layer.parameters}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if trained.get(name, True) != parameter.requires_grad:
            found.gradients[name] = parameter.requires_grad
        first = names.setdefault(id(parameter), name)
        if first != name and {first, name} & changed:
            found.ties.append((first, name))
    return found


def _layer(built: nn.Module, module: nn.Module, kind: type[nn.Module], path: str) -> Layer:
    same = type(built) is kind
    if not same and (module._modules or built._modules):
        raise _inexpressible(path, f"is a {kind.__name__}, and was built as a {type(built).__name__}")
    if not same and kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        raise _inexpressible(path, f"has become a {kind.__name__} of secateur's own")
    layer = Layer() if same else Layer(f"{kind.__module__}.{kind.__qualname__}")
    before = vars(built) if same else {}
    for name, value in vars(module).items():
        if name in _OF_TORCH or (name == "training" and same):
            continue
        if _is_plain(value):
            if name not in before or before[name] != value or type(before[name]) is not type(value):
                layer.attributes[name] = value
        elif not same:
            raise _inexpressible(path, f"has an attribute '{name}' that cannot be written down")
    shapes = _shapes(built) if same else {}
    for name, parameter in module._parameters.items():
        if parameter is not None and shapes.get(name) != tuple(parameter.shape):
            layer.parameters[name] = tuple(parameter.shape)
    for name, buffer in module._buffers.items():
        if buffer is not None and shapes.get(name) != tuple(buffer.shape):
            if name in module._non_persistent_buffers_set:
                raise _inexpressible(path, f"has a buffer '{name}' that no state_dict holds")
            layer.buffers[name] = tuple(buffer.shape)
    tensors = [*module._parameters.items(), *module._buffers.items()]
    layer.dtypes = {name: str(tensor.dtype) for name, tensor in tensors if tensor is not None and name not in shapes}
    return layer


def _shapes(module: nn.Module) -> Mapping[str, Shape]:
    tensors: Iterator[tuple[str, Tensor | None]] = iter([*module._parameters.items(), *module._buffers.items()])
    return {name: tuple(tensor.shape) for name, tensor in tensors if tensor is not None}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return type(value) in (tuple, list) and all(map(_is_plain, value))
    return type(value) in _PLAIN


def _inexpressible(path: str, what: str) -> CompilerError:
    return CompilerError(
        f"{path or 'the model'} {what}: the file that puts the model together has no words for that",
        where=path or None,
        hint="in Python, secateur.prune_regions gives the pruned model itself",
    )
