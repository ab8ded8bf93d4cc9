"""Bias correction by calibration: what the integers shift the mean of a layer's output by goes out of its bias.

    b[o] += mean(y_float[o]) - mean(y_int8[o])

Layer by layer in the order of the graph, so that each sees inputs that are corrected already (Nagel et al., A White
Paper on Neural Network Quantization, 2021, section 4.3). Means are over samples and positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...compiler.layers import layer_class
from ...compiler.program import Program
from ...compiler.quantized import QUANTIZED
from . import calibrate

SAMPLES = 64
"""Inputs that are looked at: they are held in memory together, with what is computed from them."""


def first_samples(batches: list[calibrate.Batch]) -> calibrate.Batch:
    """Return the first SAMPLES inputs as one batch."""
    return tuple(torch.cat(parts)[:SAMPLES] for parts in zip(*batches, strict=True))


def output_means(program: Program, batch: calibrate.Batch) -> dict[str, Tensor]:
    """Return the channel means, float64, of what every convolution and linear layer that is called once gives."""
    found: dict[str, Tensor] = {}

    def visit(node: fx.Node, value: Tensor) -> None:
        if node.op == "call_module" and layer_class(type(program.owner(str(node.target)))) in QUANTIZED:
            found[str(node.target)] = _means(program.owner(str(node.target)), value)

    calibrate.run(program, [batch], visit, lambda text: None, "")
    return found


def correct_biases(program: Program, batch: calibrate.Batch, wanted: Mapping[str, Tensor]) -> None:
    """Give the quantized layers of a finished program, which are its own, corrected biases."""
    with calibrate.evaluating(program):
        _Correcting(program, wanted).run(*batch)


class _Correcting(calibrate.Visiting):
    """Runs a program, correcting each layer as it comes."""

    def __init__(self, program: Program, wanted: Mapping[str, Tensor]) -> None:
        super().__init__(program, lambda node, value: None)
        self.wanted = wanted
        paths = [str(n.target) for n in program.graph.nodes if n.op == "call_module"]
        self.once = {path for path in paths if paths.count(path) == 1}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        path = str(n.target)
        if n.op != "call_module" or path not in self.wanted or path not in self.once:
            return value
        layer: Any = self.program.owner(path)
        shift = self.wanted[path] - _means(layer, value)
        bias = shift if layer.bias is None else layer.bias.double() + shift
        layer.bias = nn.Parameter(bias.to(layer.weight_scale.dtype))
        rank = 0 if isinstance(layer, nn.Linear) else layer.weight.ndim - 2
        return value + shift.to(value.dtype).reshape(-1, *[1] * rank)


def _means(layer: nn.Module, value: Tensor) -> Tensor:
    axis = value.ndim - 1 if isinstance(layer, nn.Linear) else 1
    return value.double().movedim(axis, 0).flatten(1).mean(1)
