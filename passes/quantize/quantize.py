"""``quantize``: post-training quantization to int8, with explicit quantize and dequantize in the graph.

    y = conv(x, W)  ->  y = conv(dequantize(quantize(x)), s_W W_int8)

Weights are int8 with a scale per output channel, activations 8 bits with a scale and a zero point per tensor, from
ranges seen on calibration data. Which operations run in integers is decided in ``placement``, and everything that does
not is reported with its reason. Sources: Jacob et al., CVPR 2018; Nagel et al., A White Paper on Neural Network
Quantization, arXiv 2106.08295.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from ...compiler.collection import no_collection
from ...compiler.cpu import read_cpu
from ...compiler.errors import OptionError
from ...compiler.ops import Call
from ...compiler.program import Program
from ...compiler.shapes import concrete
from ..base import Contract, Pass, PassResult, Remark, RemarkKind
from ..edit import Edit
from . import calibrate
from .canonical import canonicalise
from .insert import insert
from .placement import Kind, Placement, channel_axis, decide, describe
from .ranges import OBSERVERS, WITH_HISTOGRAM, Affine, affine
from .weights import bias_shift, quantize_weight, quantized_layer

NOISE = "no calibration data were given: ranges come from random noise, and accuracy will suffer"
_DTYPES = {"uint8": torch.uint8, "int8": torch.int8}
_KNOWN_RANGES = {"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0)}


@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize weights and activations."""

    name: ClassVar[str] = "quantize"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    scheme: Literal["int8"] = "int8"
    """Weights int8 per output channel, activations 8 bits per tensor."""
    observer: Literal["minmax", "average", "percentile", "mse", "kl"] = "mse"
    """How the ranges of activations follow from what calibration sees."""
    activations: Literal["uint8", "int8"] = "uint8"
    """Integers of activations; both are affine."""
    weight_bits: Literal["auto", "8", "7"] = "auto"
    """7 keeps sums of two products within 16 bits, which CPUs without VNNI need; auto asks this machine."""
    bias_correction: bool = True
    """Take the mean shift that rounded weights cause out of the biases."""
    exclude: tuple[str, ...] = ()
    """Layers that match stay in float."""
    seed: int = 0
    """Of generated calibration inputs."""
    data: Iterable[Any] | None = field(default=None, compare=False, metadata={"text": False})
    """Calibration batches: tensors, or tuples that begin with the inputs."""
    progress: Callable[[str], None] = field(
        default=lambda text: None, compare=False, repr=False, metadata={"text": False}
    )

    @no_collection()
    def run(self, program: Program) -> PassResult:
        """Quantize; see :class:`~..base.Pass`."""
        edit = Edit(program)
        canonicalise(edit)
        self._check_patterns(edit)
        placement = decide(edit, self._why_float)
        remarks = _refusals(edit, placement)
        if not any(p.kind is Kind.WEIGHTED for p in placement.places.values()):
            remarks.append(Remark(RemarkKind.MISSED, self.name, "", "nothing was quantized: no layer can be"))
            return PassResult(program, changed=False, stats={"int8": 0}, remarks=tuple(remarks))
        if self.data is None:
            batches = calibrate.generated(program.inputs, self.seed)
            remarks.append(Remark(RemarkKind.NOTE, self.name, "", NOISE))
        else:
            batches = calibrate.batches(self.data, program.inputs)
        before = calibrate.run(program, batches, lambda node, value: None, self.progress, "running in float")
        means, ranges = self._calibrate(edit, placement, batches)
        self._quantize_layers(edit, placement, means)
        insert(edit, ranges)
        finished = edit.finish("weights and activations are quantized: the result is for inference")
        after = calibrate.run(finished, batches, lambda node, value: None, self.progress, "running in int8")
        stats = {**_coverage(edit, placement), **_difference(before, after)}
        return PassResult(finished, changed=True, stats=stats, remarks=tuple(remarks))

    def _why_float(self, call: Call) -> str | None:
        pattern = next((p for p in self.exclude if _matches(p, describe(call))), None)
        return f"exclude={pattern}" if pattern is not None else None

    def _check_patterns(self, edit: Edit) -> None:
        names = [describe(call) for node in edit.graph.nodes if (call := edit.call(node)) is not None]
        for pattern in self.exclude:
            if not any(_matches(pattern, name) for name in names):
                raise OptionError(f"exclude names no layer: {pattern!r}", hint="`secateur inspect` lists the layers")

    def _limit(self) -> int:
        bits = read_cpu().weight_bits if self.weight_bits == "auto" else int(self.weight_bits)
        return (1 << (bits - 1)) - 1

    def _calibrate(
        self, edit: Edit, placement: Placement, batches: list[calibrate.Batch]
    ) -> tuple[dict[fx.Node, Tensor], dict[fx.Node, Affine]]:
        """Return the channel means of what weighted operations read, and how every tensor is quantized."""
        dtype = _DTYPES[self.activations]
        own = [node for node, source in placement.tensors.items() if source is None]
        histograms = own if self.observer in WITH_HISTOGRAM else []
        readers = {
            call.input: channel_axis(call)
            for node in edit.graph.nodes
            if placement.in_int8(node) and placement.places[node].kind is Kind.WEIGHTED
            if (call := edit.call(node)) is not None
        }
        seen = calibrate.observe(edit.program, batches, own, histograms, readers, self.progress)
        ranges: dict[fx.Node, Affine] = {}
        for node, source in placement.tensors.items():
            call = edit.call(node)
            known = _KNOWN_RANGES.get(call.title.lower()) if call is not None else None
            low, high = known or (OBSERVERS[self.observer](seen.statistics[node]) if source is None else (0.0, 0.0))
            ranges[node] = affine(low, high, dtype) if source is None else ranges[source]
        return seen.means, ranges

    def _quantize_layers(self, edit: Edit, placement: Placement, means: dict[fx.Node, Tensor]) -> None:
        limit, done = self._limit(), set[str]()
        for node, place in placement.places.items():
            call = edit.call(node)
            if place.kind is not Kind.WEIGHTED or call is None or call.owner in done:
                continue
            done.add(call.owner)
            weight, bias = call["weight"], call["bias"]
            integers, scale = quantize_weight(weight, limit)
            corrected: Tensor | None = None
            if self.bias_correction and not edit.is_shared(call):
                groups = int(concrete(call.params.get("groups", 1)))
                shift = bias_shift(weight, integers, scale, means[call.input], groups)
                corrected = -shift if bias is None else bias.detach().double() - shift
            edit.set_layer(call.owner, quantized_layer(call.module, integers, scale, corrected))


def _matches(pattern: str, layer: str) -> bool:
    return layer == pattern or layer.startswith(pattern + ".") or fnmatchcase(layer, pattern)


def _refusals(edit: Edit, placement: Placement) -> list[Remark]:
    """Say of every operation on real numbers that stays in float why."""
    found: list[Remark] = []
    for node, place in placement.places.items():
        call = edit.call(node)
        if place.kind is Kind.FLOAT and call is not None and not _trivial(call, placement):
            found.append(Remark(RemarkKind.MISSED, Quantize.name, describe(call), f"in float: {place.reason}"))
    return found


def _trivial(call: Call, placement: Placement) -> bool:
    """Tell whether an operation in float is not worth a word: it only moves what is in float anyway."""
    unreached = placement.places[call.node].reason == "no integers reach it"
    return unreached and call.key in ("getitem", "flatten", "reshape", "permute")


def _coverage(edit: Edit, placement: Placement) -> dict[str, int | float]:
    from ...compiler.cost import layer_costs

    macs = {cost.layer: 0 for cost in layer_costs(edit.program)}
    for cost in layer_costs(edit.program):
        macs[cost.layer] += cost.macs
    weighted = {
        describe(call)
        for node, place in placement.places.items()
        if place.kind is Kind.WEIGHTED and (call := edit.call(node)) is not None
    }
    total = max(sum(macs.values()), 1)
    return {
        "int8": sum(p.kind is not Kind.FLOAT for p in placement.places.values()),
        "float": sum(p.kind is Kind.FLOAT for p in placement.places.values()),
        "int8_macs": round(sum(count for layer, count in macs.items() if layer in weighted) / total, 4),
    }


def _difference(before: list[Tensor], after: list[Tensor]) -> dict[str, float]:
    """Compare the outputs on calibration data: signal to noise, and how often the largest logit is the same."""
    a, b = torch.cat(before).double(), torch.cat(after).double()
    noise = float((a - b).square().mean())
    found = {"sqnr_db": round(float(10 * torch.log10(a.square().mean() / max(noise, 1e-30))), 2)}
    if a.ndim == 2 and a.shape[1] > 1:
        found["same_top1"] = round(float((a.argmax(1) == b.argmax(1)).double().mean()), 4)
    return found
