"""Forward and backward pass of the training step as CUDA graphs: two launches in place of hundreds.

Small networks on small images keep a GPU waiting for the CPU, which launches kernels one by one. A graph is captured
from one batch and replayed for all others, so that batches have one size, and the network does the same for each of
them: no branches on values, no hooks. Weights, gradients and running statistics are changed in place, where callbacks
and the optimizer find them as ever. In evaluation mode the network runs as usual.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from ...compiler.errors import CompilerError, OptionError

_TYPES: Final = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def check(device: torch.device, processes: int) -> None:
    """Refuse what cannot be captured.

    Raises:
        OptionError: Training is on another device, or on several.
    """
    if device.type != "cuda" or processes > 1:
        where = f"{processes} processes" if processes > 1 else f"'{device.type}'"
        raise OptionError(
            f"steps become graphs on one CUDA device, and this run is on {where}",
            where="--cuda-graph",
            hint="leave it out",
        )


def capture(module: nn.Module, images: Tensor, precision: str) -> Callable[[], None]:
    """Let a network's training passes be replayed from now on.

    Args:
        module: In training mode, on the device; its ``forward`` is replaced until the result is called.
        images: A batch as all others will be: [B, C, H, W].
        precision: Of the recipe.

    Returns:
        What takes the graphs away again.

    Raises:
        CompilerError: The network cannot be captured.
    """
    kept = [buffer.detach().clone() for buffer in module.buffers()]
    kind = _TYPES.get(precision)
    # What autocast caches would be a tensor of the graph, and be read outside of it.
    casting: AbstractContextManager[Any] = (
        torch.autocast("cuda", dtype=kind, cache_enabled=False) if kind is not None else nullcontext()
    )
    make: Any = torch.cuda.make_graphed_callables
    try:
        with casting:
            make(module, (images.detach().clone(memory_format=torch.preserve_format),), allow_unused_input=True)
    except RuntimeError as error:
        raise CompilerError(
            f"the training step cannot become a CUDA graph: {str(error).splitlines()[0]}", hint="without --cuda-graph"
        ) from error
    with torch.no_grad():  # the passes that warm up have moved running statistics
        for buffer, value in zip(module.buffers(), kept, strict=True):
            buffer.copy_(value)
    return lambda: cast("None", vars(module).pop("forward", None))
