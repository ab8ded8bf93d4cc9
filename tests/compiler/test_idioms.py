"""What people write in ``forward`` beside layers: questions, checks, hooks, layers made on the spot, other results."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.backends.compile import compile as compile_model
from secateur.compiler.capture import trace
from secateur.compiler.errors import CaptureError, UntraceableError


class Base(nn.Module):
    """Convolutions and a head; ``body`` is what is tested."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 4)
        self.body = body
        self.kept: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)

    def head(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(x).mean((2, 3)))


@dataclass
class Result:
    """What some models return."""

    logits: Tensor
    features: Tensor


def asks(self: Base, x: Any) -> Tensor:
    if not isinstance(x, Tensor) or not torch.is_tensor(x):
        raise TypeError
    x = self.conv1(x)
    return self.head(torch.where(x > 0, x, 0.0) if isinstance(x, Tensor) else torch.cat(x))


def asks_of_results(self: Base, x: Any) -> Tensor:
    """Of a function's results, a number, a type, and as a library would that looks for whose tensors they are."""
    x = torch.relu(self.conv1(x))
    parts: Any = x.chunk(2, 1)
    size, kind = x.shape[1], x.dtype
    if not isinstance(parts, tuple) or isinstance(x, (list, np.ndarray)) or not isinstance(parts[0], Tensor):
        raise TypeError
    scale = 0.5 if isinstance(size, int) and isinstance(kind, torch.dtype) else 2.0
    x = torch.cat(parts, 1) * scale
    return self.head(torch.where(x > 0, x, 1.0))  # torch's C++ code asks, too


def lists(self: Base, x: Tensor) -> Tensor:
    """Blocks of YOLO; and the parts of a tensor, unpacked."""
    parts = list(self.conv1(x).chunk(2, 1))
    parts += [torch.relu(part) for part in parts]
    one, two, three = torch.stack(parts[:3])
    return self.head(torch.cat([one, two + three], 1))


def says(self: Base, x: Tensor) -> Tensor:
    logging.getLogger("idioms").debug("shape %s, %s", x.shape, f"{x.size(0)} images")
    return self.head(self.conv1(x))


def numbers(self: Base, x: Tensor) -> Tensor:
    return self.head(self.conv1(x) * np.float32(0.5) + np.sqrt(2))


def hooked_here(self: Base, x: Tensor) -> Tensor:
    found: list[Any] = []
    handle = self.conv1.register_forward_hook(lambda module, args, out: found.append(out))
    self.conv1(x)
    handle.remove()
    return self.head(found[0])


def hooked_before(self: Base, x: Tensor) -> Tensor:
    if not self.conv1._forward_hooks:
        self.conv1.register_forward_hook(lambda module, args, out: self.kept.update(conv1=out))
        self.norm.register_forward_hook(lambda module, args, out: out.relu())
    x = self.norm(self.conv1(x))
    return self.head(x + self.kept["conv1"])


def test_hooks_run_once_for_each_call() -> None:
    """Of layers and of containers; a norm whose hook changes something counts its batches once."""
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.Conv2d(4, 2, 1))
    seen: list[str] = []

    def watch(module: nn.Module, args: Any, out: Tensor) -> None:
        seen.append(type(module).__name__)

    def double(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return out * 2

    def raise_by_one(module: nn.Module, args: Any, out: Tensor) -> None:
        out.add_(1)

    model[0].register_forward_hook(watch)
    model[1].register_forward_hook(watch)
    model.get_submodule("0.1").register_forward_hook(double)
    model.get_submodule("0.0").register_forward_hook(raise_by_one)
    module = trace(model, torch.zeros(1, 3, 4, 4)).module.train()
    assert seen == len(seen) // 2 * ["Sequential", "Conv2d"]  # a norm that is opened is traced in both modes
    x = torch.randn(5, 3, 4, 4)
    assert torch.equal(module(x), model.train()(x))
    assert int(module.get_buffer("0.1.num_batches_tracked")) == 2  # shared with the model, which ran too


@pytest.mark.parametrize("body", [asks, asks_of_results, lists, says, numbers, hooked_here, hooked_before])
def test_what_people_write_is_captured(body: Callable[[Any, Tensor], Any]) -> None:
    torch.manual_seed(0)
    model, x = Base(body).eval(), torch.randn(2, 3, 8, 8)
    wanted = model(x)  # hooks have kept a tensor of this
    made = compile_model(model, (x,), pipeline="prune{ratio=0.5}")
    assert made.report["verification"]["holds"]
    assert not made.report["notes"]
    assert made.report["kept"]["params"] < 0.8
    program, y = trace(model, x), torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(program.module(x), wanted)
    torch.testing.assert_close(program.module(y), model(y))


def test_results_with_named_fields_are_dicts() -> None:
    model, x = Base(lambda self, x: Result(self.head(self.conv1(x)), x.mean((2, 3)))).eval(), torch.randn(2, 3, 8, 8)
    made, wanted = compile_model(model, (x,), pipeline="prune{ratio=0.5}").module(x), model(x)
    assert isinstance(wanted, Result)
    assert list(made) == ["logits", "features"]
    assert torch.equal(made["features"], wanted.features)


def test_numbers_in_tensors_are_not_known() -> None:
    with pytest.raises(UntraceableError, match=r"the numbers in a tensor \(item\)"):
        trace(Base(lambda self, x: self.conv1(x) * self.norm.weight.mean().item()).eval(), torch.zeros(1, 3, 8, 8))


class Idle(nn.Module):
    """A neck that may do something with several maps, and does nothing; zeros that ask for gradients in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.neck, self.drop = nn.Conv2d(3, 4, 1), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.conv(x))
        maps = self.neck((x, x * 2))
        if not isinstance(maps, tuple):
            raise TypeError
        return maps[0] + maps[1] + torch.zeros_like(x, requires_grad=self.training)


def test_what_does_nothing_takes_anything() -> None:
    model, x = Idle().eval(), torch.randn(2, 3, 4, 4)
    program = trace(model, x)
    assert torch.equal(program.module(x), model(x))
    assert not program.notes


class Unnamed(nn.Module):
    """Layers without weights, made where they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))(self.conv(x))
        return nn.Softmax(dim=1)(self.fc(x.mean((2, 3))))


def test_layers_that_are_made_in_forward_are_functions() -> None:
    model, x = Unnamed().eval(), torch.randn(2, 3, 8, 8)
    program = trace(model, x)
    assert torch.equal(program.module(x), model(x))
    assert not program.notes
    assert [node.target for node in program.graph.nodes if node.op == "call_module"] == ["conv", "fc"]


class Listed(nn.Module):
    """Keeps its layers where PyTorch does not find them."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = [nn.Conv2d(3, 3, 1)]

    def forward(self, x: Tensor) -> Tensor:
        return self.convs[0](x)


def test_layers_with_weights_have_to_be_submodules() -> None:
    with pytest.raises(UntraceableError, match=r"Conv2d with weights is no submodule: keep it in an nn\.ModuleList"):
        trace(Listed(), torch.zeros(1, 3, 4, 4))


class Checking(nn.Module):
    """Checks values, sizes, and what its caller may have given as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        torch._check_tensor_all(x < 9)
        for right in ((x < 9).all(), x.shape[-1] % 2 == 0, lambda: x.shape[1] == 3):
            found = right() if callable(right) else right
            if isinstance(found, Tensor):
                torch._check_tensor_all(found)
            else:
                torch._check(found)
        return self.conv(x) if x.shape[-1] > 2 else x


def test_checks_of_values_are_no_part_of_the_graph() -> None:
    model, x = Checking().eval(), torch.randn(2, 3, 4, 4)
    program = trace(model, x)
    assert torch.equal(program.module(x), model(x))
    assert len(program.graph.nodes) == 3
    with pytest.raises(CaptureError, match="does not run on inputs of shape"):
        trace(model, torch.randn(2, 3, 3, 3))
