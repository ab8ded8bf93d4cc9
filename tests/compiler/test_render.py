"""The analysis in every format."""

import json

import networkx as nx
import pytest

from secateur.compiler import examples
from secateur.compiler.analysis import analyze
from secateur.compiler.errors import OptionError
from secateur.compiler.render import render
from support.golden import Golden
from support.small import Grouped, Pinned, Residual, captured


def rendered(model: type, form: str) -> str:
    program = captured(model())
    return render(analyze(program), program, form)


def test_text_of_the_example(golden: Golden) -> None:
    program = captured(examples.load("digits").module, 1, 1, 8, 8)
    golden("inspect_digits", render(analyze(program), program))


def test_text_says_what_stays_and_what_shrinks_alike() -> None:
    assert "cells     4 x 6 channels, which shrink alike" in rendered(Grouped, "text")
    text = rendered(Pinned, "text")
    assert "a: 6 channels, all stay" in text
    assert "cumsum" in text


def test_text_says_what_goes_as_a_whole() -> None:
    program = captured(Grouped())
    lines = render(analyze(program, whole_cells=True), program).splitlines()
    assert lines[0].endswith("2 groups of coupled layers, 4 of 8 channels and cells may be removed")
    assert lines[2:6] == [
        "a: 4 cells",
        "  coupled   a, b",
        "  read by   b, c",
        "  cells     4 x 4 channels, which go as wholes",
    ]


def test_json_has_the_documented_keys() -> None:
    found = json.loads(rendered(Residual, "json"))
    assert sorted(found) == "balances channels edges format groups inputs layers model prunable".split()
    assert found["format"] == 1
    assert found["inputs"] == [{"name": "x", "shape": [1, 3, 8, 8]}]
    trunk = found["groups"][0]
    assert trunk["name"] == "stem"
    assert trunk["layers"] == ["stem", "back"]
    assert trunk["readers"] == ["inner", "fc"]
    assert trunk["norms"] == ["bn", "norm"]
    assert (trunk["width"], trunk["prunable"]) == (8, 8)
    assert found["groups"][-1]["pins"] == [{"node": "output", "reason": "the model's output", "channels": 5}]
    assert found["balances"][0]["node"] == "norm"
    assert {layer["kind"] for layer in found["layers"]} == {"conv", "batch_norm", "group_norm", "linear"}


def test_the_graph_of_layers() -> None:
    program = captured(Residual())
    graph = analyze(program).to_networkx(program)
    reads = {(a, b) for a, b, kind in graph.edges(data="kind") if kind == "reads"}
    assert reads == {
        ("stem", "bn"),
        ("stem", "inner"),
        ("inner", "back"),
        ("stem", "norm"),
        ("back", "norm"),
        ("stem", "fc"),
        ("back", "fc"),
    }
    coupled = [(a, b, data["node"]) for a, b, data in graph.edges(data=True) if data["kind"] == "coupled"]
    assert coupled == [("stem", "back", "add")]
    assert graph.nodes["stem"] == {"kind": "conv", "channels": 8, "prunable": 8, "group": "stem"}


def test_graphml_reads_back() -> None:
    graph = nx.parse_graphml(rendered(Residual, "graphml"))
    assert set(graph.nodes) == {"stem", "bn", "inner", "back", "norm", "fc"}


def test_dot_and_html() -> None:
    dot = rendered(Residual, "dot")
    assert dot.startswith('digraph "Residual" {')
    assert '"stem" -> "back" [dir=none, style=dashed' in dot
    assert '"fc" [label="fc\\nlinear 5", style=filled' in dot
    page = rendered(Residual, "html")
    assert page.startswith("<!doctype html>")
    assert "<td>stem, back</td>" in page
    assert "the model&#x27;s output (node output)" in page


def test_formats_that_do_not_exist() -> None:
    with pytest.raises(OptionError, match="the format 'svg' is not there yet"):
        rendered(Residual, "svg")
    with pytest.raises(OptionError, match="the format 'pdf' is unknown"):
        rendered(Residual, "pdf")
