"""The emitted file runs, is equal to the program, keeps its names, and reads well."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur.backends import artefact, weights_file
from secateur.backends.source.emit import emit_source, emitted_state
from secateur.compiler import capture, functional
from support.emitted import IMAGE, assert_equal, check, run_source, trace
from support.golden import Golden


class Residual(nn.Module):
    def __init__(self, inside: int, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, out, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inside != out:
            self.downsample = nn.Sequential(nn.Conv2d(inside, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        return self.relu(out + identity)


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(Residual(8, 5, 8), Residual(8, 3, 8))
        self.layer2 = nn.Sequential(Residual(8, 7, 12, stride=2), Residual(12, 9, 12))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def test_golden_residual_net(golden: Golden) -> None:
    text = check(trace(ResidualNet(), IMAGE, name="ResidualNet"))
    golden("backends/residual_net", text[text.index("class ") : text.index("_DTYPES")])


class Everything(nn.Module):
    """Parameters, buffers, splits, index_select, chunk, infix operators, methods, slices."""

    gather_0: torch.Tensor
    shift: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, padding=1, padding_mode="reflect")
        self.scale = nn.Parameter(torch.ones(10, 1, 1))
        self.register_buffer("gather_0", torch.tensor([9, 1, 0, 4, 2, 3, 8]))
        self.register_buffer("shift", torch.ones(1, 7, 1, 1), persistent=False)
        self.fc = nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x) * self.scale
        a, b = torch.split(y, [4, 6], dim=1)
        a, b = F.relu(a), torch.sigmoid(b) - 2.5
        y = torch.index_select(torch.cat((b, a), 1), 1, self.gather_0) + self.shift
        c, d = y[:, :, 1:-1].chunk(2, dim=2)
        y = (c / (d * d + 1.0)) ** 2
        size = y.size()
        y = y.view(size[0], size[1], -1).mean(dim=2)
        return -self.fc(y.clamp(min=-3.0, max=3.0))


def test_functional_code_and_attributes() -> None:
    program = trace(Everything(), IMAGE)
    program.attribute("gather_0").copy_(torch.tensor([9, 1, 0, 4, 2, 3, 8]))
    text = check(program)
    assert 'self.register_buffer("gather_0", torch.zeros(7, dtype=torch.int64))' in text
    assert "self.scale = nn.Parameter(torch.zeros(10, 1, 1))" in text
    assert "x1, x2 = torch.split(" in text
    assert "[:, :, 1:-1]" in text


class Dense(nn.Module):
    def __init__(self, inside: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, 4, 3, padding=1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.conv(torch.cat(features, 1))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({f"layer{i}": Dense(3 + 4 * i) for i in range(8)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for layer in self.layers.values():
            features.append(layer(features))
        return torch.cat(features, 1)


def test_dense_connections_take_any_number_of_features() -> None:
    text = check(trace(DenseNet(), IMAGE))
    assert "def forward(self, *features: Tensor)" in text
    assert text.count("class Dense(") == 1


class Twice(nn.Module):
    """One block called twice alike, another called twice in different ways, a layer used by two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.fork = Fork()
        self.second = Borrower(self.fork.conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(self.block(x))
        return self.second(self.fork(x, True) + self.fork(x, False))


class Fork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor, activate: bool) -> torch.Tensor:
        return F.relu(self.conv(x)) if activate else self.conv(x)


class Borrower(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.own = nn.Conv2d(3, 3, 1)
        self.borrowed = [conv]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.borrowed[0](self.own(x))


def test_shared_blocks_stay_shared() -> None:
    text = check(trace(Twice(), IMAGE))
    assert text.count("nn.Conv2d(") == 3


class Outputs(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.split = Splitter()
        self.head = nn.ModuleList([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 5, 1)])

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        a, b = self.split(x + y)
        a, b = self.head[0](a), self.head[1](b)
        return {"dict": {"out": a, "aux": [b, a]}, "tuple": (a, b), "named": Pair(a, b)}[self.form]


class Splitter(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x[:, :2], x[:, 1:]


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize("form", ["dict", "tuple", "named"])
def test_outputs_keep_their_form(form: str) -> None:
    program = trace(Outputs(form), IMAGE, IMAGE)
    text = emit_source(program)
    model = run_source(text)
    model.load_state_dict(emitted_state(program))
    inputs = torch.rand(IMAGE), torch.rand(IMAGE)
    ours, theirs = model(*inputs), program.module(*inputs)
    if form == "dict":
        assert_equal(ours["aux"], theirs["aux"])
        assert torch.equal(ours["out"], theirs["out"])
    else:
        assert_equal(ours, theirs)
    if form == "named":
        assert ours._fields == Pair._fields


def test_order_of_evaluation_survives_work_in_place() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x) - 1.0
            before = x * 2.0
            after = self.relu(x)
            return before + after * x

    program = trace(InPlace(), IMAGE)
    text = emit_source(program)
    model = run_source(text)
    model.load_state_dict(emitted_state(program))
    x = torch.rand(IMAGE)
    assert torch.equal(model(x), program.module(x))


def test_augmented_assignment() -> None:
    program = trace(ResidualNet(), IMAGE)
    for node in program.graph.nodes:
        if node.target is operator.add:
            node.target = operator.iadd
    text = emit_source(program)
    assert "out += self.downsample(x)" in text
    model = run_source(text).eval()
    model.load_state_dict(emitted_state(program))
    x = torch.rand(IMAGE)
    assert torch.equal(model(x), program.module(x))


def test_training_flag_is_live_and_helpers_come_along() -> None:
    class Flagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.conv2 = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.dropout(self.conv(x), 0.5)
            return x + functional.stochastic_depth(self.conv2(x), 0.25, "row", False)

    program = trace(Flagged(), IMAGE)
    for node in list(program.graph.nodes):
        if node.target in {F.dropout, functional.stochastic_depth}:
            with program.graph.inserting_before(node):
                flag = program.graph.get_attr("training")
            if node.target is F.dropout:
                node.kwargs = {**node.kwargs, "training": flag}
            else:
                node.args = (*node.args[:3], flag)
    text = check(program)
    assert "training=self.training" in text
    assert "def stochastic_depth(" in text
    assert "fx" not in text.partition("class ")[0].replace("prefix", "")
    model = run_source(text)
    model.load_state_dict(emitted_state(program))
    x = torch.rand(IMAGE)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = nn.Linear(6, 6)
            self.first = nn.Sequential(inner, nn.ReLU())
            self.second = nn.Linear(6, 6)
            self.second.weight = inner.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    text = check(trace(Tied(), (2, 6)))
    model = run_source(text)
    assert model.second.weight is model.first[0].weight


def test_gaps_keep_numbers() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    program = trace(net, IMAGE)
    for node in program.graph.nodes:
        if node.target == "1":
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
            break
    text = check(program)
    assert "nn.Identity()" in text


def test_a_node_between_two_blocks_tears_neither_apart() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1))
            self.head = nn.Sequential(nn.Dropout(), nn.Linear(4, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.flatten(self.pool(x), 1))

    text = emit_source(trace(Head(), IMAGE))
    assert "return self.head(torch.flatten(self.pool(x), 1))" in text


def test_node_without_a_stack_joins_its_consumer() -> None:
    program = trace(ResidualNet(), IMAGE)
    for node in program.graph.nodes:
        if node.target == "layer2.0.conv2":
            with program.graph.inserting_before(node):
                node.args = (program.graph.call_function(torch.mul, (node.args[0], 0.5)),)
    text = check(program)
    assert "torch.mul(" in text
    assert "class Residual" in text


def test_load_reads_the_weights_without_a_package(tmp_path: Path) -> None:
    program = trace(ResidualNet(), IMAGE)
    (tmp_path / "model.py").write_text(emit_source(program))
    weights_file.save(emitted_state(program), tmp_path / "model.safetensors")
    namespace: dict[str, Any] = {"__name__": "emitted", "__file__": str(tmp_path / "model.py")}
    exec((tmp_path / "model.py").read_text(), namespace)
    x = torch.rand(IMAGE)
    expected = program.module(x)
    assert torch.equal(namespace["load"]()(x), expected)
    assert torch.equal(namespace["load"](tmp_path)(x), expected)
    assert torch.equal(artefact.load(tmp_path)(x), expected)


def test_names_of_places_are_no_obstacle() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("block-0", nn.Conv2d(3, 3, 1))
            self.load = nn.ModuleDict({"a-b": nn.Conv2d(3, 3, 1)})

        def forward(self, input: torch.Tensor, *, scale: float = 2.0) -> torch.Tensor:
            return self.load["a-b"](getattr(self, "block-0")(input)) * 2.0

    check(trace(nn.Sequential(nn.Sequential(Odd())), IMAGE, name="3d model"))


def test_a_model_that_is_a_plain_sequence() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    program = capture.trace(module, torch.zeros(1, 3, 8, 8))
    assert program.name == "Sequential"
    space: dict[str, Any] = {"__name__": "emitted"}
    exec(emit_source(program), space)
    model = space["Sequential"]()
    model.load_state_dict(module.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x), module(x))


class Swish(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def plain() -> list[nn.Module]:
    return [nn.Conv2d(3, 8, 3), Swish(), nn.Conv2d(8, 4, 1)]


def scaled() -> list[nn.Module]:
    return [nn.Conv2d(3, 8, 3), Scale(), Swish(), nn.Conv2d(8, 4, 1)]


def nested() -> list[nn.Module]:
    return [nn.Sequential(nn.Conv2d(3, 8, 3), Swish()), Swish(), nn.Conv2d(8, 4, 1)]


def shared() -> list[nn.Module]:
    swish = Swish()
    return [nn.Conv2d(3, 8, 3), swish, nn.Conv2d(8, 8, 1), swish, nn.Conv2d(8, 4, 1)]


@pytest.mark.parametrize("layers", [plain, scaled, nested, shared])
def test_a_sequence_with_a_block_that_has_no_layers(layers: Callable[[], list[nn.Module]]) -> None:
    text = check(trace(nn.Sequential(*layers()), IMAGE, name="Net"))
    assert "class Net(nn.Sequential):" in text
    assert "class Swish(nn.Module):" in text
