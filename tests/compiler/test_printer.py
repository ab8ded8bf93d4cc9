"""Programs as text."""

import torch
from torch import nn

from secateur.compiler.printer import fingerprint, print_program
from secateur.passes.prune.prune import Prune
from support.passes import tiny_program
from support.small import Residual, captured


class Everything(nn.Module):
    """Every kind of node and of argument."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = x[:, 1:, ..., ::2].reshape(x.size(0), -1)
        return {"a": torch.cat([y, y.to(torch.float32)], dim=1), "b": x * self.scale}


def test_one_line_per_node() -> None:
    lines = print_program(captured(Residual())).splitlines()
    assert lines[0] == "Residual(x: float32[1, 3, 8, 8])"
    assert lines[1] == "  x = input -> float32[1, 3, 8, 8]"
    assert lines[2].startswith("  stem = conv[stem](x) -> float32[1, 8, 8, 8]  # Conv2d(3, 8, kernel_size=(3, 3)")
    assert "  relu = unary[torch.relu](bn) -> float32[1, 8, 8, 8]" in lines
    assert "  mean = reduce[.mean](norm, (2, 3)) -> float32[1, 8]" in lines
    assert lines[-1] == "  output(fc)"


def test_arguments_of_every_kind() -> None:
    text = print_program(captured(Everything()))
    assert "scale = attribute[scale] -> float32[3, 1, 1]" in text
    assert "getitem[operator.getitem](x, (:, 1:, ..., ::2)) -> float32[1, 2, 8, 4]" in text
    assert "size = size[.size](x, 0) -> 1" in text
    assert "cat[torch.cat]([reshape, to], dim=1)" in text
    assert "unary[.to](reshape, torch.float32)" in text
    assert text.endswith("output({'a': cat, 'b': mul})")


def test_the_same_program_prints_the_same() -> None:
    first, second = captured(Residual()), captured(Residual())
    assert print_program(first) == print_program(second)
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(first) != fingerprint(Prune(macs=0.5).run(first).program)


def test_a_fingerprint_of_weights() -> None:
    model = Residual()
    program = captured(model)
    before, with_weights = fingerprint(program), fingerprint(program, weights=True)
    with torch.no_grad():
        model.fc.bias.add_(1.0)
    assert fingerprint(program) == before
    assert fingerprint(program, weights=True) != with_weights


def test_programs_without_shapes_and_broken_ones_print_too() -> None:
    program = tiny_program()
    assert "conv = conv[conv](x)  # Conv2d(3, 4, " in print_program(program)
    next(node for node in program.graph.nodes if node.op == "call_module").target = "absent"
    assert "conv = unknown[absent](x)" in print_program(program)
