"""Whether a compact network predicts what the masked one does, image by image.

Both run in float32, as they are used. Where their predictions differ, two logits may be so close that rounding decides;
these images are run again in float64, which has to settle it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...compiler.errors import CompilerError
from ...compiler.oracle import MaskedOriginal
from ...compiler.plan import Plan
from ...compiler.program import Program
from .objective import all_logits
from .splits import Share, Split

_BATCH: Final = 250
Masked = Callable[[torch.device, torch.dtype], Callable[[Tensor], Any]]
"""From a device and a type to the masked network, as a function of images [B, C, H, W] of that type there."""


def masked_module(module: nn.Module) -> Masked:
    """Return a network whose masks are in its weights."""
    return lambda device, dtype: module.to(device, dtype).eval()


def masked_original(original: Program, plan: Plan) -> Masked:
    """Return the original, masked as a plan says."""
    return lambda device, dtype: MaskedOriginal(original, plan, device=device, dtype=dtype).run


def compare(compact: nn.Module, masked: Masked, images: Split, device: torch.device) -> dict[str, Any]:
    """Compare predictions for all images.

    Args:
        compact: In evaluation mode, on the CPU in float32; it is left so.
        masked: What it should predict.
        images: Labelled.
        device: Where both run; one that knows no float64 is not used for the second look.

    Returns:
        ``images``, ``same_as_masked``, ``top1`` of the compact network in percent, and ``in_float64``: how many needed
        a second look.

    Raises:
        CompilerError: A prediction differs.
    """
    right = seen = different = 0
    odd: list[Tensor] = []
    with torch.no_grad():
        here, there = compact.to(device, torch.float32).eval(), masked(device, torch.float32)
        for batch, labels in images.placed(device).testing(_BATCH, Share()):
            mine, theirs = _predictions(here, batch), _predictions(there, batch)
            right += int((mine == labels).sum())
            seen += len(labels)
            odd += list(batch[mine != theirs].cpu())
        if odd:
            exact = device if device.type == "cuda" else torch.device("cpu")
            batch = torch.stack(odd).to(exact, torch.float64)
            mine = _predictions(compact.to(exact, torch.float64), batch)
            different = int((mine != _predictions(masked(exact, torch.float64), batch)).sum())
        compact.to("cpu", torch.float32)
        masked(torch.device("cpu"), torch.float32)
    if different:
        raise CompilerError(f"{different} of {seen} predictions differ from those of the masked network")
    top1 = 100 * right / seen
    return {"images": seen, "same_as_masked": True, "top1": top1, "in_float64": len(odd)}


def _predictions(network: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    return all_logits(network(images))[0].argmax(1)
