"""One hand-broken program for every clause of the verifier."""

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from secateur.compiler.errors import InternalError
from secateur.compiler.program import InputSpec, Program, TensorSpec
from secateur.compiler.shapes import infer_node, set_value, value_of
from secateur.compiler.verifier import verify
from secateur.passes.prune.prune import Prune
from support.small import Grouped, Residual, captured


def node_of(program: Program, name: str) -> fx.Node:
    return next(node for node in program.graph.nodes if node.name == name)


def pruned() -> Program:
    return Prune(macs=0.5).run(captured(Residual())).program


@pytest.mark.parametrize("model", [Residual(), Grouped()])
def test_captured_and_pruned_programs_are_valid_and_stay_as_they_are(model: nn.Module) -> None:
    program = captured(model)
    verify(program)
    result = Prune(macs=0.5).run(program).program
    before = {node: value_of(node) for node in result.graph.nodes}
    verify(result)
    assert {node: value_of(node) for node in result.graph.nodes} == before


def test_a_program_without_shapes_is_checked_for_all_else() -> None:
    root = Residual()
    program = Program(fx.symbolic_trace(root).graph, root, (InputSpec("x", (1, 3, 8, 8)),))
    verify(program)
    node_of(program, "stem").target = "absent"
    with pytest.raises(InternalError, match="node stem names the layer 'absent', which does not exist"):
        verify(program)


def reads_too_early(program: Program) -> None:
    node_of(program, "stem").append(node_of(program, "add"))


def reads_another_graph(program: Program) -> None:
    stranger = fx.Graph().placeholder("stranger")
    node_of(program, "inner").args = (stranger,)


def forgotten_reader(program: Program) -> None:
    del node_of(program, "stem").users[node_of(program, "bn")]


def false_reader(program: Program) -> None:
    node_of(program, "stem").users[node_of(program, "fc")] = None


def two_names(program: Program) -> None:
    node_of(program, "bn").name = "stem"


def no_output(program: Program) -> None:
    program.graph.erase_node(node_of(program, "output"))


def two_outputs(program: Program) -> None:
    program.graph.create_node("output", "output", (node_of(program, "stem"),))


def another_input(program: Program) -> None:
    with program.graph.inserting_after(node_of(program, "x")):
        program.graph.placeholder("y")


def absent_attribute(program: Program) -> None:
    with program.graph.inserting_before(node_of(program, "stem")):
        program.graph.create_node("get_attr", "absent")


def tensor_as_layer(program: Program) -> None:
    node_of(program, "stem").target = "stem.weight"


def wrong_shape(program: Program) -> None:
    set_value(node_of(program, "inner"), TensorSpec((1, 7, 8, 8), torch.float32))


def wrong_input(program: Program) -> None:
    set_value(node_of(program, "x"), TensorSpec((2, 3, 8, 8), torch.float32))


def no_shape(program: Program) -> None:
    node_of(program, "inner").meta.clear()


def does_not_run(program: Program) -> None:
    node_of(program, "inner").replace_input_with(node_of(program, "relu"), node_of(program, "x"))


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (reads_too_early, r"node add reads \w+, before it is computed"),
        (reads_another_graph, "node inner reads stranger, which belongs to another graph"),
        (forgotten_reader, "node stem does not know its reader bn"),
        (false_reader, "node stem has the reader fc, which does not read it"),
        (two_names, "two nodes are called stem"),
        (no_output, "the graph has 0 outputs"),
        (two_outputs, "the graph has 2 outputs"),
        (another_input, r"the graph takes \['x', 'y'\], the program \['x'\]"),
        (absent_attribute, "names the attribute 'absent', which does not exist"),
        (tensor_as_layer, "node stem names the layer 'stem.weight', which does not exist"),
        (wrong_shape, r"node inner is recorded as torch.float32 \[1, 7, 8, 8\], and is torch.float32 \[1, 6, 8, 8\]"),
        (wrong_input, r"node x is recorded as torch.float32 \[2, 3, 8, 8\], and is torch.float32 \[1, 3, 8, 8\]"),
        (no_shape, "node inner has no recorded shape"),
        (does_not_run, "node inner does not run: inner does not accept"),
    ],
)
def test_broken_graphs(breaks: Callable[[Program], None], message: str) -> None:
    program = captured(Residual())
    breaks(program)
    with pytest.raises(InternalError, match=message):
        verify(program)


@pytest.mark.parametrize(
    ("layer", "attribute", "value", "message"),
    [
        (
            "stem",
            "out_channels",
            9,
            r"layer stem \(Conv2d\(3, 9,.*\) needs a weight of shape \[9, 3, 3, 3\], and has \[8",
        ),
        ("stem", "in_channels", 4, "needs a weight of shape"),
        ("bn", "num_features", 9, r"layer bn .* needs a weight of shape \[9\], and has \[8\]"),
        ("norm", "num_channels", 10, r"layer norm .* needs a weight of shape \[10\]"),
        ("norm", "num_groups", 3, "is not divisible by num_groups"),
        ("fc", "in_features", 7, r"layer fc .* needs a weight of shape \[5, 7\], and has \[5, 8\]"),
        ("fc", "bias", nn.Parameter(torch.zeros(4)), r"needs a bias of shape \[5\], and has \[4\]"),
    ],
)
def test_layers_that_contradict_their_parameters(layer: str, attribute: str, value: object, message: str) -> None:
    program = captured(Residual())
    setattr(program.owner(layer), attribute, value)
    with pytest.raises(InternalError, match=message):
        verify(program)


@pytest.mark.parametrize(
    ("module", "attribute", "value"),
    [
        (nn.Conv2d(8, 8, 1, groups=2), "groups", 3),
        (nn.ConvTranspose2d(8, 6, 1), "out_channels", 5),
        (nn.LayerNorm(8), "normalized_shape", (9,)),
        (nn.PReLU(8), "num_parameters", 9),
        (nn.InstanceNorm2d(8, affine=True), "num_features", 9),
    ],
)
def test_further_layers_that_contradict_their_parameters(module: nn.Module, attribute: str, value: object) -> None:
    program = captured(nn.Sequential(module), 1, 8, 8, 8)
    verify(program)
    setattr(module, attribute, value)
    with pytest.raises(InternalError, match=r"divisible|needs a weight of shape"):
        verify(program)


def test_a_pass_may_leave_nothing_unused_behind() -> None:
    program = pruned()
    verify(program)
    program.root.add_module("left", nn.ReLU())
    with pytest.raises(InternalError, match="the graph does not use the module 'left'"):
        verify(program)
    program = pruned()
    program.root.register_buffer("gather_0", torch.zeros(1))
    with pytest.raises(InternalError, match="the graph does not use the tensor 'gather_0'"):
        verify(program)


def test_the_training_flag_may_change() -> None:
    class Functional(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x, 0.5, self.training)

    program = captured(Functional())
    program.root.train()
    verify(program)
    for node in program.graph.nodes:
        if node.op == "call_function":
            infer_node(program, node)
