"""A program being rewritten: the one given stays, tensors are rounded once, new nodes stand in their block."""

import torch
from torch import nn

from secateur.compiler.capture import trace
from secateur.compiler.program import Program
from secateur.compiler.shapes import shape_of
from secateur.passes.edit import Edit, copy_layer


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.fc = Block(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.block(x).mean((2, 3))) + self.fc.weight.sum()


def program() -> Program:
    return trace(Net().eval(), torch.zeros(1, 3, 5, 5))


def test_the_program_given_stays_as_it_is() -> None:
    given = program()
    text, weight = str(given.graph), given.attribute("block.conv.weight")
    edit = Edit(given)
    edit.set_parameters("block.conv", {"weight": torch.zeros(4, 3, 1, 1, dtype=torch.float64)})
    relu = next(n for n in edit.graph.nodes if n.name == "relu")
    edit.replace(relu, relu.args[0])
    finished = edit.finish("a note")
    assert str(given.graph) == text
    assert given.attribute("block.conv.weight") is weight
    assert finished.attribute("block.conv.weight").abs().sum() == 0
    assert finished.attribute("block.conv.bias") is given.attribute("block.conv.bias")
    assert finished.notes == ("a note",)


def test_parameters_stay_in_float64_until_the_end() -> None:
    edit = Edit(program())
    third = torch.full((4,), 1.0, dtype=torch.float64) / 3
    edit.set_parameters("block.conv", {"bias": third})
    layer = edit.program.owner("block.conv")
    assert torch.equal(layer.get_parameter("bias"), third)
    assert edit.finish().attribute("block.conv.bias").dtype == torch.float32


def test_layers_whose_tensors_others_read_are_shared() -> None:
    edit = Edit(program())
    calls = {call.owner: call for node in edit.graph.nodes if (call := edit.call(node)) is not None and call.module}
    assert edit.is_shared(calls["fc"])
    assert not edit.is_shared(calls["block.conv"])


def test_new_nodes_get_a_shape_and_the_block_of_the_layer_not_the_layer_as_their_block() -> None:
    edit = Edit(program())
    conv = next(n for n in edit.graph.nodes if n.target == "block.conv")
    with edit.graph.inserting_after(conv):
        made = edit.settle(edit.graph.call_function(torch.sigmoid, (conv,)), conv)
    assert shape_of(made) == (1, 4, 5, 5)
    assert [path for path, _ in made.meta["nn_module_stack"].values()] == ["block"]


def test_copies_of_a_layer_share_tensors_but_no_registry() -> None:
    layer = nn.Conv2d(3, 4, 1)
    copy = copy_layer(layer)
    assert copy.get_parameter("weight") is layer.weight
    copy._parameters["weight"] = nn.Parameter(torch.zeros(1))
    assert layer.weight.numel() == 12
