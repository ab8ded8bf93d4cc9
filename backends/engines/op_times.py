"""How long each operation of an engine takes, in words that are the same for all engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

CONVOLUTION: Final = "convolution"
LINEAR: Final = "linear"
ELEMENTWISE: Final = "elementwise"
POOL: Final = "pool"
NORM: Final = "norm"
LAYOUT: Final = "layout"
ROUNDING: Final = "quantize or dequantize"
MOVEMENT: Final = "movement"
OTHER: Final = "other"

_AFTER: Final = "after "

_TYPES: Final[dict[str, str]] = {
    CONVOLUTION: "conv conv_transpose Conv ConvTranspose FusedConv QLinearConv Convolution GroupConvolution",
    LINEAR: (
        "linear Gemm QGemm FusedGemm MatMul FusedMatMul MatMulInteger MatMulIntegerToFloat QLinearMatMul "
        "DynamicQuantizeMatMul FullyConnected FullyConnectedQuantized FullyConnectedQuantizedLegacy"
    ),
    ELEMENTWISE: (
        "unary binary where prelu Add Sub Mul Div Pow Sqrt Exp Erf Relu LeakyRelu PRelu Clip Sigmoid HardSigmoid "
        "HardSwish Tanh Gelu FastGelu BiasGelu QuickGelu Softmax QLinearAdd QLinearMul QLinearSigmoid QLinearLeakyRelu "
        "QLinearSoftmax Subgraph Multiply Subtract Divide Eltwise SwishCPU HSwish MulAdd PowerStatic Clamp softmax"
    ),
    POOL: (
        "max_pool avg_pool adaptive_pool lp_pool reduce MaxPool AveragePool GlobalAveragePool QLinearGlobalAveragePool "
        "QLinearAveragePool ReduceMean QLinearReduceMean AvgPool GlobalMaxPool Pooling"
    ),
    NORM: (
        "batch_norm layer_norm group_norm instance_norm BatchNormalization LayerNormalization SkipLayerNormalization "
        "InstanceNormalization GroupNormalization RMS MVN NormalizeL2"
    ),
    LAYOUT: "Reorder ReorderInput ReorderOutput Transpose permute transpose",
    ROUNDING: "quantize dequantize QuantizeLinear DequantizeLinear FakeQuantize Convert Cast",
    MOVEMENT: (
        "cat split chunk reshape flatten getitem pad Concat QLinearConcat Split Gather Slice StridedSlice Pad Reshape "
        "Flatten Squeeze Unsqueeze VariadicSplit ShuffleChannels Expand copy channel_shuffle index_select unsqueeze"
    ),
}
_KINDS: Final = {word: kind for kind, words in _TYPES.items() for word in words.split()}


@dataclass(frozen=True)
class OpTime:
    """One operation as an engine runs it; what an engine fuses is one operation."""

    node: str
    """The layer that it belongs to, or "after LAYER", by the names of the program; else the engine's own name."""
    kind: str
    """One of the kinds above, whatever the engine calls it."""
    ms: float
    """Milliseconds per call, the median over calls."""
    precision: str
    """"int8" or "float32": that of the numbers that it reads."""


def kind_of(type_name: str) -> str:
    """Return the kind of an engine's operation type."""
    return _KINDS.get(type_name, OTHER)


def layer_names(graph: Any) -> dict[str, str]:
    """Return for each name in an ONNX graph, of nodes and of their outputs, the layer that a person knows it by.

    An operation that reads a stored tensor ``LAYER.weight`` belongs to that layer; another stands after one, through
    its first inputs; what stands after none has no entry.

    Args:
        graph: ``onnx_ir.Graph``; nodes in topological order.
    """
    layers: dict[str, str] = {}
    """Value name -> the layer that made it."""
    stored: dict[str, str] = {}
    """Value name -> the layer whose weight it is."""
    found: dict[str, str] = {}
    for name in graph.initializers:
        owner, _, tensor = str(name).rpartition(".")
        if tensor == "weight":
            stored[name] = owner
    for node in graph:
        inputs = [value.name for value in node.inputs if value is not None]
        outputs = [value.name for value in node.outputs]
        own = next((stored[name] for name in inputs if name in stored), None)
        if own is not None and node.op_type in ("DequantizeLinear", "Transpose"):
            stored.update(dict.fromkeys(outputs, own))  # still the weight
            continue
        behind = next((layers[name] for name in inputs if name in layers), None)
        label = own if own is not None else f"{_AFTER}{behind}" if behind is not None else None
        if label is not None:
            layers.update(dict.fromkeys(outputs, own if own is not None else str(behind)))
            found.update(dict.fromkeys([str(node.name), *outputs], label))
    return found


def op_time(name: str, type_name: str, ms: float, *, integers: bool, layers: Mapping[str, str]) -> OpTime:
    """Return an engine's operation in the words of all.

    Args:
        name: The engine's.
        type_name: The engine's.
        ms: Milliseconds per call.
        integers: Whether it reads integers.
        layers: From :func:`layer_names`.
    """
    kind = kind_of(type_name)
    layer = find_layer(name.removeprefix("fused "), layers)
    if kind in (CONVOLUTION, LINEAR):  # fused with what stands after it, it has taken over its name
        layer = layer.removeprefix(_AFTER)
    return OpTime(layer, kind, ms, "int8" if integers else "float32")


def find_layer(name: str, layers: Mapping[str, str]) -> str:
    """Return the layer of an engine's operation, which adds to the names of the file: ``conv2d_1_nchwc``, ``x/Bias``.

    Returns:
        The layer of the longest known name that begins it; the name itself where there is none.
    """
    for end in range(len(name), 0, -1):
        if (end == len(name) or name[end] in "_/") and name[:end] in layers:
            return layers[name[:end]]
    return name
