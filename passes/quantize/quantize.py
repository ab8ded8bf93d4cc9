"""``quantize``: post-training quantization to int8, with explicit quantize and dequantize in the graph.

    y = conv(x, W)  ->  y = conv(dequantize(quantize(x)), s_W W_int8)

Weights are int8 with a scale per output channel, activations 8 bits with a scale and a zero point per tensor, from
ranges seen on calibration data. Which operations run in integers is decided in ``placement``, and everything that does
not is reported with its reason. Sources: Jacob et al., CVPR 2018; Nagel et al., A White Paper on Neural Network
Quantization, arXiv 2106.08295.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx, nn

from ...compiler.collection import no_collection
from ...compiler.cpu import read_cpu
from ...compiler.errors import OptionError
from ...compiler.ops import Call
from ...compiler.program import Program
from ...compiler.shapes import concrete
from ..base import Contract, Pass, PassResult, Remark, RemarkKind
from ..calibration import read
from ..edit import Edit, copy_layer
from . import calibrate, correction, overrides, sensitivity
from .adaround import adaround
from .canonical import canonicalise
from .coverage import coverage, difference, refusals
from .insert import insert, insert_fake
from .placement import Kind, Placement, channel_axis, decide, describe
from .ranges import OBSERVERS, WITH_HISTOGRAM, Affine, affine
from .weights import bias_shift, fake_layer, quantize_weight, quantized_layer

NOISE = "no calibration data were given: ranges come from random noise, and accuracy will suffer"
_DTYPES = {"uint8": torch.uint8, "int8": torch.int8}
_KNOWN_RANGES = {"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0)}
_INFERENCE = "weights and activations are quantized: the result is for inference"
_TRAINING = "weights and activations are quantized in appearance only, for training: `convert` makes integers of them"


@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize weights and activations."""

    name: ClassVar[str] = "quantize"
    contract: ClassVar[Contract] = Contract.APPROXIMATE
    noise_will_do: ClassVar[bool] = True
    """Whether it runs without calibration data, if badly."""

    scheme: Literal["int8"] = "int8"
    """Weights int8 per output channel, activations 8 bits per tensor."""
    observer: Literal["minmax", "average", "percentile", "mse", "kl"] = "mse"
    """How the ranges of activations follow from what calibration sees."""
    activations: Literal["uint8", "int8"] = "uint8"
    """Integers of activations; both are affine. Engines for x86 prefer uint8."""
    weight_bits: Literal["auto", "8", "7"] = "auto"
    """7 keeps sums of two products within 16 bits, which CPUs without VNNI need; auto asks this machine."""
    bias_correction: Literal["none", "analytic", "calibrated"] = "analytic"
    """How the mean shift that integers cause is taken out of the biases."""
    rounding: Literal["nearest", "adaround"] = "nearest"
    """Whether weights go to the nearest integer, or to the one that serves their layer's output best (slow)."""
    layers: Mapping[str, str] = field(
        default_factory=dict[str, str],
        metadata={
            "parse": overrides.parse_overrides,
            "format": overrides.format_overrides,
            "expected": "LAYER:float|7|8|OBSERVER,...",
        },
    )
    """Other settings for single layers."""
    max_drop: float | None = None
    """Give the most sensitive layers back to float until at most this fraction of the calibration inputs changes its
    top-1."""
    train: bool = False
    """Fake quantization, for quantization-aware training; ``convert`` ends it."""
    seed: int = 0
    """Of generated calibration inputs."""
    data: Iterable[Any] | None = field(default=None, compare=False, metadata={"text": False})
    """Calibration batches: tensors, or tuples that begin with the inputs."""
    progress: Callable[[str], None] = field(
        default=lambda text: None, compare=False, repr=False, metadata={"text": False}
    )

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: A value is out of range.
        """
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise OptionError(f"max-drop={self.max_drop:g} is out of range", hint="a fraction, 0 <= max-drop < 1")

    @no_collection()
    def run(self, program: Program) -> PassResult:
        """Quantize; see :class:`~..base.Pass`."""
        notes: list[Remark] = []
        if self.data is None:
            batches = calibrate.generated(program.inputs, self.seed)
            notes.append(Remark(RemarkKind.NOTE, self.name, "", NOISE))
        else:
            batches = [batch.inputs for batch in read(self.data, program)]
        run = _Run(self, program, batches)
        if not run.layers:
            nothing = Remark(RemarkKind.MISSED, self.name, "", "nothing was quantized: no layer can be")
            return PassResult(program, changed=False, stats={"int8": 0}, remarks=(*run.refused, nothing))
        given_back = self._given_back(program, batches, run)
        if given_back:
            run = _Run(self, program, batches, given_back)
        finished, stats = run.finish()
        return PassResult(finished, changed=True, stats=stats, remarks=(*run.refused, *notes))

    def draft(self) -> Quantize:
        """Take the first ranges that come: they change numbers, not speed."""
        return replace(
            self, observer="minmax", bias_correction="none", rounding="nearest", max_drop=None, data=None,
        )  # fmt: skip

    def _given_back(self, program: Program, batches: list[calibrate.Batch], run: _Run) -> list[str]:
        """Return the fewest of the most sensitive layers that have to stay in float for ``max_drop`` to hold."""
        if self.max_drop is None:
            return []
        batch = correction.first_samples(batches)
        ranked = sensitivity.by_noise(run.edit, run.layers, run.ranges, batch, self.limit(""), self.progress)
        order = [layer for layer, _ in ranked]
        low, high = 0, len(order)
        while low < high:  # the smallest number of layers with which the budget holds
            middle = (low + high) // 2
            self.progress(f"trying {middle} of {len(order)} layers in float")
            _, stats = _Run(self, program, batches, order[:middle]).finish()
            if 1.0 - stats.get("same_top1", 1.0) <= self.max_drop:
                high = middle
            else:
                low = middle + 1
        return order[:low]

    def limit(self, layer: str) -> int:
        """Return the largest integer of a layer's weight."""
        own = overrides.setting(layer, self.layers, overrides.BITS)
        bits = own or (str(read_cpu().weight_bits) if self.weight_bits == "auto" else self.weight_bits)
        return (1 << (int(bits) - 1)) - 1


class _Run:
    """One way through: decided and calibrated when made, quantized when finished."""

    def __init__(
        self, options: Quantize, program: Program, batches: list[calibrate.Batch], given_back: Collection[str] = ()
    ) -> None:
        self.options, self.batches, self.given_back = options, batches, given_back
        self.edit = Edit(program)
        canonicalise(self.edit)
        calls = [call for node in self.edit.graph.nodes if (call := self.edit.call(node)) is not None]
        overrides.check(options.layers, {describe(call) for call in calls})
        program = self.edit.program
        self.elsewhere = {
            id(program.attribute(str(node.target))): next(iter(node.users)).name
            for node in self.edit.graph.nodes
            if node.op == "get_attr" and node.users
        }
        """Identity of a tensor that the graph reads by itself -> by which node."""
        self.placement: Placement = decide(self.edit, self._why_float)
        self.layers: dict[fx.Node, Call] = {
            call.node: call
            for call in calls
            if call.node in self.placement.places and self.placement.places[call.node].kind is Kind.WEIGHTED
        }
        self.refused = refusals(self.edit, self.placement)
        self.means: dict[fx.Node, Tensor] = {}
        self.ranges: dict[fx.Node, Affine] = {}
        if self.layers:
            self._calibrate()

    def _why_float(self, call: Call) -> str | None:
        if call.owner in self.given_back:
            return f"among the most sensitive, and max-drop={self.options.max_drop:g} would not hold"
        reader = self.elsewhere.get(id(call.params.get("weight")))
        if reader is not None:
            return f"its weight is also read by {reader}, as a tensor"
        own = overrides.setting(describe(call), self.options.layers, (overrides.FLOAT,))
        return "layers= says so" if own is not None else None

    def _calibrate(self) -> None:
        """Find the channel means of what weighted operations read, and how every tensor is quantized."""
        own = {node: self._observer(node) for node, source in self.placement.tensors.items() if source is None}
        histograms = [node for node, observer in own.items() if observer in WITH_HISTOGRAM]
        readers = {call.input: channel_axis(call) for call in self.layers.values()}
        seen = calibrate.observe(self.edit.program, self.batches, own, histograms, readers, self.options.progress)
        self.means = seen.means
        for node, source in self.placement.tensors.items():
            if source is not None:
                self.ranges[node] = self.ranges[source]
                continue
            call = self.edit.call(node)
            known = _KNOWN_RANGES.get(call.title.lower()) if call is not None else None
            low, high = known or OBSERVERS[own[node]](seen.statistics[node])
            self.ranges[node] = affine(low, high, _DTYPES[self.options.activations])

    def _observer(self, node: fx.Node) -> str:
        """Return the observer of a tensor: that of the layer that made it, also through a clipping operation."""
        call = self.edit.call(node)
        while call is not None and self.placement.places[call.node].kind is Kind.CLIPPING:
            call = self.edit.call(call.input)
        own = overrides.setting(describe(call), self.options.layers, OBSERVERS) if call is not None else None
        return own or self.options.observer

    def finish(self) -> tuple[Program, dict[str, int | float]]:
        """Quantize; returns the program and figures about it."""
        options, silent = self.options, lambda node, value: None
        covered = coverage(self.edit, self.placement, self.layers.values())
        calibrated = options.bias_correction == "calibrated" and not options.train
        sample = correction.first_samples(self.batches)
        wanted = correction.output_means(self.edit.program, sample) if calibrated else {}
        before = calibrate.run(self.edit.program, self.batches, silent, options.progress, "running in float")
        self._quantize_layers()
        (insert_fake if options.train else insert)(self.edit, self.ranges)
        finished = self.edit.finish(_TRAINING if options.train else _INFERENCE)
        if calibrated:
            correction.correct_biases(finished, sample, wanted)
        after = calibrate.run(finished, self.batches, silent, options.progress, "running in int8")
        return finished, {**covered, **difference(before, after)}

    def _quantize_layers(self) -> None:
        for call in {call.owner: call for call in self.layers.values()}.values():
            limit = self.options.limit(call.owner)
            if self.options.train:
                self.edit.set_layer(call.owner, fake_layer(call.module, limit))
                continue
            weight, bias = call["weight"], call["bias"]
            integers, scale = quantize_weight(weight, limit)
            if self.options.rounding == "adaround" and not self.edit.is_shared(call):
                integers = self._learned(call, scale, limit)
            corrected: Tensor | None = None
            if self.options.bias_correction == "analytic" and not self.edit.is_shared(call):
                groups = int(concrete(call.params.get("groups", 1)))
                shift = bias_shift(weight, integers, scale, self.means[call.input], groups)
                corrected = -shift if bias is None else bias.detach().double() - shift
            self.edit.set_layer(call.owner, quantized_layer(call.module, integers, scale, corrected))

    def _learned(self, call: Call, scale: Tensor, limit: int) -> Tensor:
        """Return learned integers of a layer's weight."""
        read: list[Tensor] = []

        def visit(node: fx.Node, value: Tensor) -> None:
            if node is call.input:
                read.append(value)

        def operation(x: Tensor, weight: Tensor) -> Tensor:
            return torch.func.functional_call(layer, {"weight": weight}, (x,))

        layer = copy_layer(call.module).eval() if call.module is not None else nn.Module()
        sample = correction.first_samples(self.batches)
        calibrate.run(self.edit.program, [sample], visit, lambda text: None, "")
        self.options.progress(f"learning to round {call.owner}")
        return adaround(call["weight"], scale, limit, read[0], operation, seed=self.options.seed)
