"""Which operations are to blame is said in one sentence: what takes longer, and what runs in float32."""

from __future__ import annotations

import pytest
from torch import nn

from secateur.backends.engines.op_times import OpTime
from secateur.backends.profile import blame, float_form
from support.quantized_by_hand import quantized
from support.small import captured

FLOAT = [
    OpTime("stem", "convolution", 4.0, "float32"),
    OpTime("body", "convolution", 4.0, "float32"),
    OpTime("after body", "elementwise", 1.0, "float32"),
]


def test_what_takes_longer_comes_first_and_is_named() -> None:
    found = blame(
        FLOAT,
        [
            OpTime("stem", "convolution", 2.0, "int8"),
            OpTime("body", "convolution", 2.0, "int8"),
            OpTime("after stem", "elementwise", 1.5, "int8"),
            OpTime("after body", "elementwise", 3.0, "int8"),
        ],
    )
    assert [kind.kind for kind in found.kinds] == ["elementwise", "convolution"]
    assert found.kinds[0].extra_ms == pytest.approx(3.5)
    assert (found.float_ms, found.int8_ms) == (9.0, 8.5)
    assert found.sentence == (
        "elementwise operations take 3.50 ms more than in float32 (2 instead of 1; the slowest after body, 3.00 ms)"
    )


def test_layers_in_float_are_counted_and_the_first_is_named() -> None:
    found = blame(FLOAT, [OpTime("stem", "convolution", 4, "int8"), OpTime("body", "convolution", 4, "float32")])
    assert found.sentence == "1 of 2 convolutions are computed in float32 (first body)"


def test_a_kind_that_float_does_not_have() -> None:
    found = blame(FLOAT, [*FLOAT, OpTime("after stem", "quantize or dequantize", 0.5, "float32")])
    assert found.sentence.startswith("quantize or dequantize operations take 0.50 ms more than in float32 (1 instead")
    assert "2 of 2 convolutions" in found.sentence


def test_nothing_to_blame() -> None:
    faster = [OpTime("stem", "convolution", 3.0, "int8"), OpTime("after body", "elementwise", 1.0, "int8")]
    assert blame(FLOAT, faster).sentence == (
        "no kind of operation takes longer than in float32; convolution operations take most of the time, "
        "3.00 of 4.00 ms"
    )
    assert blame([], []).sentence == "there are no operations to compare"


def test_json() -> None:
    content = blame(FLOAT, FLOAT).to_json()
    assert content["float_ms"] == content["int8_ms"] == 9.0
    assert content["kinds"][0]["in_float"] == 2


def test_the_float_form_has_weights_of_the_same_shapes() -> None:
    wide, narrow = captured(nn.Linear(4, 3), 1, 4), captured(nn.Linear(4, 2), 1, 4)
    integers = quantized(nn.Linear(4, 2), 1, 4)
    assert float_form(integers, [wide, narrow, integers]) is narrow
    assert float_form(integers, [wide, integers]) is wide
    assert float_form(integers, [integers]) is None
    assert float_form(narrow, [wide, narrow]) is None
