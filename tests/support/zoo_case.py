"""What a zoo case is. A case is a forward function, its layers, and what must be true of its channels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.compiler.capture import trace
from secateur.compiler.program import Program

Shape = tuple[int, ...]
IMAGE: Shape = (2, 3, 8, 8)


@dataclass(frozen=True)
class Case:
    """One coupling."""

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[Shape, ...] = (IMAGE,)
    tokens: bool = False
    """Whether the inputs are integers."""
    free: tuple[str, ...] = ()
    """Layers of which something must be prunable."""
    pinned: Mapping[str, str] = field(default_factory=dict[str, str])
    """Layers of which nothing may be prunable, and a part of the reason."""

    def module(self) -> nn.Module:
        """A fresh module with all weights and statistics random (nothing is one or zero by accident)."""
        torch.manual_seed(1)
        module = self.build()
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if "running_var" in name or (tensor.ndim == 1 and name.endswith("weight")):
                    tensor.uniform_(0.5, 1.5)
                elif tensor.is_floating_point() and (tensor.ndim <= 1 or "running" in name):
                    tensor.normal_()
        return module

    def examples(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Random inputs."""
        if self.tokens:
            return tuple(torch.randint(0, 2, (batch, *s[1:])) for s in self.inputs)
        return tuple(torch.randn(batch, *s[1:]) for s in self.inputs)

    def program(self) -> Program:
        """The captured program of a fresh module."""
        return trace(self.module(), self.examples())


ZOO: dict[str, Case] = {}

Forward = Callable[..., Any]


def case(
    *inputs: Shape,
    free: str = "",
    pinned: Mapping[str, str] | None = None,
    tokens: bool = False,
    prepare: Callable[[Any], Any] = lambda module: None,
    **layers: Callable[[], Any],
) -> Callable[[Forward], Forward]:
    """Make a case of a forward function. ``layers`` are factories of modules, parameters and buffers."""

    def register(forward: Forward) -> Forward:
        name = forward.__name__

        def build() -> nn.Module:
            class_name = "".join(word.title() for word in name.split("_"))
            module: nn.Module = type(class_name, (nn.Module,), {"forward": forward})()
            for key, make in layers.items():
                value = make()
                if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                    module.register_buffer(key, value)
                else:
                    setattr(module, key, value)
            prepare(module)
            return module

        assert name not in ZOO
        ZOO[name] = Case(name, build, inputs or (IMAGE,), tokens, tuple(free.split()), pinned or {})
        return forward

    return register


def conv(i: int, o: int, k: int = 3, **options: Any) -> Callable[[], nn.Conv2d]:
    """A convolution that keeps the spatial size."""
    chosen: dict[str, Any] = {"padding": k // 2, **options}
    return lambda: nn.Conv2d(i, o, k, **chosen)


def make(layer: Callable[..., Any], *args: Any, **options: Any) -> Callable[[], Any]:
    """A factory of any layer."""
    return lambda: layer(*args, **options)


def parameter(*shape: int) -> Callable[[], nn.Parameter]:
    """A factory of a random parameter."""
    return lambda: nn.Parameter(torch.randn(*shape))


def sequence(*factories: Callable[[], nn.Module]) -> Callable[[], nn.Sequential]:
    """A factory of layers one after another."""
    return lambda: nn.Sequential(*(f() for f in factories))
