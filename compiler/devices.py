"""Devices that code names while it is traced.

The model's own stands for wherever the model will be: ``x.to(device)`` is ``x``, and ``x.to(device, dtype)`` is
``x.to(dtype)``. What is written as a text or a method (``x.to("cpu")``, ``x.cpu()``) stays: somebody wants it there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

_META: Final = torch.device("meta")


def device_of(model: nn.Module) -> torch.device:
    """Return where a model is."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def without_moving(
    args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what is left of the arguments of ``to`` if a device is the model's."""

    def is_ours(argument: Any) -> bool:
        return isinstance(argument, torch.device) and argument == device

    if "copy" in kwargs:
        return tuple(args), dict(kwargs)
    left = tuple(a for a in args if not is_ours(a)), {k: v for k, v in kwargs.items() if not is_ours(v)}
    moved = len(left[0]) + len(left[1]) < len(args) + len(kwargs)
    return (left[0], {}) if moved and not left[0][1:] and left[1].keys() <= {"non_blocking"} else left


def call_on_meta(target: Callable[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a function, or a method of the first argument, for tensors without data, which cannot leave their device."""
    if target in ("cpu", "cuda"):
        return args[0]
    here = [_on_meta(a, target == "to" and place == 1) for place, a in enumerate(args)]
    named = {name: _on_meta(a, target == "to" and name == "device") for name, a in kwargs.items()}
    with _META:  # for what is made anew
        return getattr(here[0], target)(*here[1:], **named) if isinstance(target, str) else target(*here, **named)


def _on_meta(argument: Any, named: bool) -> Any:
    return _META if isinstance(argument, torch.device) or (named and isinstance(argument, (str, int))) else argument
