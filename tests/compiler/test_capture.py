"""Capture: what is live in the graph, what is made explicit, and what errors say."""

import warnings
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.compiler.capture import trace
from secateur.compiler.errors import CaptureError
from secateur.compiler.program import Program
from support.pruning import program_of
from support.zoo import ZOO


def names(program: Program) -> list[str]:
    """Names of all nodes."""
    return [node.name for node in program.graph.nodes]


class Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


def test_training_flags_stay_live() -> None:
    model = Dropping()
    module = trace(model, torch.ones(4, 100)).module
    assert model.training is True
    assert 0.0 in module(torch.ones(4, 100))
    assert torch.equal(module.eval()(torch.ones(4, 100)), torch.ones(4, 100))


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return 2 * x if self.training else x


def test_a_branch_on_training_is_captured_as_evaluation_with_a_note() -> None:
    program = trace(Doubling(), torch.zeros(1, 3, 4, 4))
    assert program.notes == ("Doubling branches on `training`: its evaluation branch was captured, for train() too",)
    assert "mul" not in {node.name for node in program.graph.nodes}


def test_library_stochastic_depth_is_replaced_by_our_own() -> None:
    targets = [node.target for node in program_of("drop_of_paths").graph.nodes if node.op == "call_function"]
    from secateur.compiler.functional import stochastic_depth

    assert stochastic_depth in targets


class Updating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.relu_()
        return self.conv(x) + y


def test_mutation_is_made_explicit() -> None:
    program = trace(Updating(), torch.zeros(1, 3, 4, 4))
    (add,) = (n for n in program.graph.nodes if n.name == "add")
    assert [a.name for a in add.args] == ["conv_1", "relu_"]


def test_a_change_through_a_view_is_not_dead() -> None:
    assert "mul_" in names(program_of("changed_through_a_view"))


def test_dead_code_goes() -> None:
    assert not [n for n in names(program_of("layer_that_nobody_reads")) if n.startswith("mul")]


class Arithmetic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.get_buffer("scale") * 2)


def test_buffers_stay_live() -> None:
    module = trace(Arithmetic(), torch.zeros(2, 3)).module
    module.get_buffer("scale").fill_(5.0)
    assert module(torch.ones(2, 3)).eq(10).all()
    assert set(module.state_dict()) == {"scale"}


def test_buffers_whose_values_python_needs_are_read_once_with_a_note() -> None:
    program = program_of("number_in_a_buffer")
    assert [n for n in names(program) if n.startswith("mul")] == ["mul", "mul_1"]
    assert "computed once" in program.notes[0]


def test_inputs_are_described() -> None:
    program = program_of("two_inputs")
    assert [(i.name, i.shape) for i in program.inputs] == [("x", (2, 3, 8, 8)), ("y", (2, 5, 8, 8))]
    assert program.name == "TwoInputs"
    assert trace(Dropping(), torch.zeros(1, 2), name="my net").name == "my_net"


class Optional(nn.Module):
    def forward(self, x: Tensor, scale: Tensor | None = None, shift: float = 1.0) -> Tensor:
        return F.relu(x) + shift if scale is None else x * scale


def test_optional_inputs_may_be_left_out() -> None:
    program = trace(Optional(), torch.zeros(2, 3))
    assert [i.name for i in program.inputs] == ["x"]


@pytest.mark.parametrize("inputs", [(), (torch.zeros(1),) * 4])
def test_a_wrong_number_of_inputs_is_told(inputs: tuple[Tensor, ...]) -> None:
    with pytest.raises(CaptureError, match=rf"Optional takes 1 to 3 inputs \(x, scale, shift\); {len(inputs)} given"):
        trace(Optional(), inputs)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def test_control_flow_is_told_with_module_and_line() -> None:
    with pytest.raises(CaptureError) as caught:
        trace(nn.Sequential(nn.ReLU(), nn.Sequential(Branching())), torch.zeros(1, 3))
    error = caught.value
    assert "symbolically traced variables cannot be used as inputs to control flow" in error.what
    assert error.where is not None
    assert error.where.startswith("1.0 (Branching), ")
    assert "if x.sum() > 0" in error.where
    assert len(str(error).splitlines()) == 3


def test_what_the_model_does_not_take_is_told_in_its_own_words() -> None:
    class Refusing(Branching):
        """Takes images of one size only."""

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 8:
                raise ValueError("8 columns, please")
            return super().forward(x)

    model = Refusing().train()
    with pytest.raises(CaptureError, match=r"does not run on inputs of shape \(2, 3, 9, 9\): ValueError: 8 columns"):
        trace(model, torch.randn(2, 3, 9, 9))
    assert model.training


def test_capture_leaves_the_model_alone() -> None:
    model = ZOO["batch_norm"].module()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    attributes = {path: dict(m.__dict__) for path, m in model.named_modules()}
    program = trace(model, torch.zeros(2, 3, 8, 8))
    program.module.eval()
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert {path: set(m.__dict__) for path, m in model.named_modules()} == {k: set(v) for k, v in attributes.items()}
    assert program.module.get_submodule("stem").weight is model.get_submodule("stem").weight


def test_a_captured_module_can_be_captured_again() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = program_of("dropout")
        again = trace(first.module, ZOO["dropout"].examples())
    assert names(again) == names(first)
    assert again.notes == ()


class SplitThenChange(nn.Module):
    """Pieces of a tensor see what happens to it afterwards; a piece does not see what happens to another."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 1.5
        pieces = x.chunk(2, 1)
        (x if self.whole else pieces[0]).add_(1)
        return pieces[1] + 0.5


@pytest.mark.parametrize("whole", [True, False])
def test_pieces_of_a_tensor_that_is_changed_in_place(whole: bool) -> None:
    module = SplitThenChange(whole)
    x = torch.randn(2, 4, 3)
    program = trace(module, x)
    assert torch.equal(program.module(x.clone()), module(x.clone()))
    assert any("add_" in str(node.target) for node in program.graph.nodes) == whole


def decorated(function: Any) -> Any:
    """Takes options apart, as libraries do."""

    @wraps(function)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("return_dict", None)
        return function(self, *args, **kwargs)

    return wrapper


class Decorated(nn.Module):
    """Records what a layer gives by a hook that is installed once; checks its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Dropping(), nn.Linear(3, 2)
        self.found: list[Any] = []
        self.installed = False

    @decorated
    @decorated
    def forward(
        self, x: Tensor, mask: Tensor | None = None, *more: Any, scale: float = 2.0, deep: bool = True, **kwargs: Any
    ) -> dict[str, Tensor]:
        if not self.installed:
            self.body.register_forward_hook(lambda module, args, output: self.found.append(output))
            self.installed = True
        self.found.clear()
        if x.shape[1] != 3 or mask is not None or more or kwargs or not deep:
            raise ValueError
        x = self.body(x)
        (found,) = self.found
        return {"logits": self.fc(found.mean((2, 3))) * scale}


def test_decorated_functions_get_their_arguments_by_name_and_hooks_run_once() -> None:
    model = Decorated().eval()
    x = torch.randn(2, 3, 6, 6)
    program = trace(model, x)
    assert (model.installed, model.found, len(model.body._forward_hooks)) == (False, [], 0)
    torch.testing.assert_close(program.module(x), model(x))
