"""Why layers are coupled and why channels stay, in words and as data."""

import pytest
import torch
from torch import Tensor, nn

from secateur.cli import main
from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.errors import OptionError
from secateur.compiler.explain import Explanation
from support.heads import HEAD_CASES
from support.small import Grouped, Pinned, Residual, captured


class WithRelu(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(super().forward(x))


def explained(model: type, layer: str, other: str | None = None) -> Explanation:
    program = captured(model())
    return analyze(program).explain(program, layer, other)


def test_two_coupled_layers_with_the_node_that_couples_them() -> None:
    found = explained(Residual, "stem", "back")
    assert (found.shared, found.width) == (8, 8)
    assert [(hop.source, hop.target, hop.node) for hop in found.hops] == [("stem", "back", "add")]
    lines = str(found).splitlines()
    assert lines[0].startswith("stem and back are coupled: 8 of stem's 8 channels")
    assert lines[1] == "  stem"
    assert lines[2].endswith("(node add)")
    assert lines[3] == "  back"


def test_layers_that_are_not_coupled_though_one_reads_the_other() -> None:
    text = str(explained(Residual, "inner", "back"))
    assert text == (
        "inner and back share no channels\n  but back reads 6 channels of inner, so its inputs shrink with them"
    )


def test_a_norm_has_the_channels_that_it_passes_on() -> None:
    found = explained(Residual, "stem", "bn")
    assert found.shared == 8
    assert found.hops == ()
    assert "they are the same channels" in str(found)


def test_counts_that_stay_in_step() -> None:
    found = explained(Grouped, "a", "b")
    assert found.shared == 0
    assert "counts must stay in step: a grouped convolution needs as many channels in every group (node b)" in str(
        found
    )


def test_groups_that_may_go_as_wholes() -> None:
    assert "  or whole ones go, 4 cells of 4 channels (cells=drop)" in str(explained(Grouped, "a")).splitlines()
    program = captured(Grouped())
    deps = analyze(program, whole_cells=True)
    assert str(deps.explain(program, "a")).splitlines() == [
        "a: 4 cells of 4 channels, which go as wholes, all may be removed but one",
        "  coupled with b (group a)",
    ]
    assert "a and b are coupled: 4 of a's 4 cells live and die with cells of b" in str(deps.explain(program, "a", "b"))
    assert "a group of a convolution goes as a whole (node b)" in str(deps.explain(program, "a", "b"))


def test_whole_heads_are_in_step_by_themselves() -> None:
    program = HEAD_CASES["Fused"].program()
    assert "counts must stay in step" in str(analyze(program).explain(program, "qkv"))
    assert str(analyze(program, whole_cells=True).explain(program, "qkv")).splitlines() == [
        "qkv: 4 cells of 15 channels, which go as wholes, all may be removed but one",
        "  coupled with no other layer",
    ]


class Mixed(Grouped):
    """Groups of three after groups of four."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Sequential(nn.Conv2d(24, 9, 1, groups=3), nn.Conv2d(9, 2, 1))


def test_groups_that_may_not_go_as_wholes() -> None:
    assert str(explained(Mixed, "a")).endswith("whole ones (cells=drop) stay, since they go together")


def test_one_free_layer() -> None:
    found = explained(Residual, "inner")
    assert (found.width, found.prunable, found.coupled, found.pins) == (6, 6, (), ())
    assert str(found) == "inner: 6 channels, all may be removed but one\n  coupled with no other layer"


def test_one_coupled_layer() -> None:
    assert "coupled with stem (group stem)" in str(explained(Residual, "back"))


def test_the_output_stays() -> None:
    assert "fc: 5 channels, all stay" in str(explained(Residual, "fc"))
    assert "they stay: the model's output (node output)" in str(explained(Residual, "fc"))


def test_a_pin_that_reaches_a_layer_over_a_tie() -> None:
    direct, indirect = explained(Pinned, "a"), explained(Pinned, "b")
    assert direct.prunable == indirect.prunable == 0
    (hops,) = {tuple(hop.node for hop in found.pins[0].hops) for found in (direct, indirect)} - {()}
    assert hops == ("add",)
    assert "which reaches them by" in str(direct) + str(indirect)


def test_json() -> None:
    found = explained(Residual, "stem", "back").to_json()
    assert found["hops"][0]["node"] == "add"
    assert found["other"] == "back"


@pytest.mark.parametrize(
    ("name", "what", "hint"),
    [
        ("stm", "there is no layer 'stm' with channels", "nearest: stem"),
        ("zzzz", "there is no layer 'zzzz' with channels", "`secateur inspect` lists the layers"),
        ("relu", "layer 'relu' has no channels of its own", "name the layer before or behind it"),
    ],
)
def test_unknown_layers(name: str, what: str, hint: str) -> None:
    with pytest.raises(OptionError) as caught:
        explained(WithRelu, "stem", name)
    assert caught.value.what == what
    assert caught.value.hint == hint


def test_cells_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["support.small:Grouped", "--input", "1x3x8x8", "--weights", "none", "--quiet", "--cells", "drop"]
    assert main(["explain", model[0], "b", *model[1:]]) == 0
    assert capsys.readouterr().out.startswith("b: 4 cells of 6 channels, which go as wholes")
    assert main(["inspect", *model]) == 0
    assert "cells     4 x 4 channels, which go as wholes" in capsys.readouterr().out


def test_a_layer_whose_weight_decodes_too_has_its_own_channels_only() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.encode, self.out = nn.Linear(6, 12), nn.Linear(12, 16), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.encode(torch.relu(self.inside(x)))
            return self.out(nn.functional.linear(torch.relu(x), self.encode.weight.t()))

    program = trace(Tied().eval(), torch.zeros(1, 6))
    found = analyze(program).explain(program, "encode")
    assert (found.width, found.prunable) == (16, 16)
    assert analyze(program).explain(program, "inside").coupled == ("encode",)
