"""Engines' operations get kinds that are the same for all, and the names of the program's layers."""

from __future__ import annotations

from typing import Any

import pytest

from secateur.backends.engines.op_times import (
    CONVOLUTION,
    LINEAR,
    OTHER,
    ROUNDING,
    OpTime,
    find_layer,
    kind_of,
    layer_names,
    op_time,
)
from support.quantized_by_hand import Mixed, quantized


@pytest.mark.parametrize(
    ("type_name", "kind"),
    [
        ("QLinearConv", CONVOLUTION),
        ("GroupConvolution", CONVOLUTION),
        ("conv", CONVOLUTION),
        ("Conv", CONVOLUTION),
        ("QGemm", LINEAR),
        ("FullyConnected", LINEAR),
        ("DequantizeLinear", ROUNDING),
        ("NeverHeardOf", OTHER),
    ],
)
def test_kinds(type_name: str, kind: str) -> None:
    assert kind_of(type_name) == kind


def test_a_name_is_found_by_its_longest_known_beginning() -> None:
    layers = {"conv2d": "stem", "conv2d_1": "body"}
    assert find_layer("conv2d_1_nchwc", layers) == "body"
    assert find_layer("conv2d_nchwc", layers) == "stem"
    assert find_layer("conv2d/WithoutBiases", layers) == "stem"
    assert find_layer("conv2d", layers) == "stem"
    assert find_layer("conv2dx", layers) == "conv2dx"


def test_a_layer_that_took_over_the_name_of_what_it_was_fused_with() -> None:
    layers = {"relu": "after stem", "linear": "fc"}
    assert op_time("relu_nchwc", "Conv", 1.0, integers=False, layers=layers) == OpTime(
        "stem", CONVOLUTION, 1.0, "float32"
    )
    assert op_time("fused linear", "QGemm", 1.0, integers=True, layers=layers) == OpTime("fc", LINEAR, 1.0, "int8")
    assert op_time("relu", "Mul", 1.0, integers=True, layers=layers).node == "after stem"


def test_layers_are_known_by_their_weights_and_others_by_what_they_stand_behind() -> None:
    export: Any = pytest.importorskip("secateur.backends.engines.onnx_export").export
    pytest.importorskip("onnxscript")
    names = layer_names(export(quantized(Mixed(4), 1, 3, 8, 8)).model.model.graph)
    layers = {"stem", "depthwise", "point", "branch", "squeeze", "hidden", "fc"}
    assert {name for name in names.values() if not name.startswith("after ")} == layers
    assert names["node_conv2d"] == names["conv2d"] == "stem"
    assert names["sigmoid"] == "after squeeze"
    assert "node_quantize" not in names  # in front of the first layer
