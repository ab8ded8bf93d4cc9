"""Which layers int8 harms most: each is quantized alone, weight and input, and the noise at the output is measured.

What this finds is an order, in which a mixed-precision search gives layers back to float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ...compiler.functional import dequantize_channels, fake_quantize
from ...compiler.ops import Call
from ..calibration import first_tensor
from ..edit import Edit
from . import calibrate
from .ranges import Affine
from .weights import quantize_weight


def by_noise(
    edit: Edit,
    layers: Mapping[fx.Node, Call],
    ranges: Mapping[fx.Node, Affine],
    batch: calibrate.Batch,
    limit: int,
    progress: Callable[[str], None],
) -> list[tuple[str, float]]:
    """Return (layer, noise) with the noisiest first.

    Args:
        edit: The program, canonicalised, in float.
        layers: Calls of layers that int8 is for.
        ranges: How tensors are quantized.
        batch: Inputs.
        limit: Largest integer of a weight.
        progress: Told which layer is being looked at.

    Returns:
        Noise is the mean square of the change of the output, relative to that of the output.
    """
    exact = _run(edit, {}, ranges, batch, limit)
    power = float(exact.square().mean())
    found: dict[str, float] = {}
    for number, (node, call) in enumerate(layers.items(), start=1):
        progress(f"measuring sensitivity: layer {number} of {len(layers)}")
        noisy = _run(edit, {node: call}, ranges, batch, limit)
        noise = float((noisy - exact).square().mean()) / max(power, 1e-30)
        found[call.owner] = max(noise, found.get(call.owner, 0.0))
    return sorted(found.items(), key=lambda pair: -pair[1])


def _run(
    edit: Edit,
    layers: Mapping[fx.Node, Call],
    ranges: Mapping[fx.Node, Affine],
    batch: calibrate.Batch,
    limit: int,
) -> Tensor:
    with calibrate.evaluating(edit.program):
        return first_tensor(_OneInInt8(edit, layers, ranges, limit).run(*batch)).double()


class _OneInInt8(calibrate.Visiting):
    """Runs a program with some layers as if they were quantized."""

    def __init__(
        self, edit: Edit, layers: Mapping[fx.Node, Call], ranges: Mapping[fx.Node, Affine], limit: int
    ) -> None:
        super().__init__(edit.program, lambda node, value: None)
        self.layers, self.ranges, self.limit = layers, ranges, limit

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        call = self.layers.get(n)
        if call is None or call.module is None:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        grid = self.ranges[call.input]
        x = fake_quantize(args[0], grid.scale, grid.zero_point, grid.dtype)
        weight = dequantize_channels(*quantize_weight(call["weight"], self.limit))
        return torch.func.functional_call(call.module, {"weight": weight}, (x,))
