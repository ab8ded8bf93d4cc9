"""What the architectures share: the table of them, and the layer that most begin with."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import nn

from .zoo_case import IMAGE, Case, Shape

OUTPUT: Mapping[str, str] = {"head": "the model's output"}
Class = TypeVar("Class", bound=type[nn.Module])

ARCHITECTURES: dict[str, Case] = {}
"""Name -> case. ``pinned`` is complete: every other layer with weights may lose all channels but one."""


def architecture(*inputs: Shape, whole: Mapping[str, str] | None = None) -> Callable[[Class], Class]:
    """Enter a module class without arguments. ``whole``: layers of which nothing may go, and a part of the reason."""

    def register(module: Class) -> Class:
        name = module.__name__
        assert name not in ARCHITECTURES
        ARCHITECTURES[name] = Case(name, module, inputs or (IMAGE,), pinned=OUTPUT if whole is None else whole)
        return module

    return register


def conv_bn(i: int, o: int, k: int = 3, *, stride: int = 1, groups: int = 1, relu: bool = True) -> nn.Sequential:
    """Convolution, batch norm and, mostly, an activation."""
    layers = [nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class Classifier(nn.Sequential):
    """Pool and classify."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
