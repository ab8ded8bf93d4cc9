"""Settings for single layers, as text and back."""

import pytest

from secateur.passes.quantize.overrides import BITS, format_overrides, parse_overrides, setting


def test_text_and_back() -> None:
    text = "conv1:float,layer4.*:7,fc:minmax"
    assert format_overrides(parse_overrides(text)) == text


def test_an_exact_name_outranks_a_pattern() -> None:
    layers = parse_overrides("layer4.*:7,layer4.conv:8,layer4.conv2:float")
    assert setting("layer4.conv", layers, BITS) == "8"
    assert setting("layer4.other", layers, BITS) == "7"
    assert setting("fc", layers, BITS) is None


@pytest.mark.parametrize("text", ["conv1", "conv1:", ":7", "conv1:9", "a:7,a:8", ""])
def test_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected layer:setting|given twice"):
        parse_overrides(text)
