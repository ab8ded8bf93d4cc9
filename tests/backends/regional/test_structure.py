"""What makes a pruned model another one than its builder builds, and the file that says it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.backends.regional.loader import Builder, builder_of, emit_loader
from secateur.backends.regional.structure import compare
from secateur.compiler.errors import CompilerError


class Frozen(nn.Module):
    """A norm without parameters, as detectors have them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("scale").view(1, -1, 1, 1)


class Net(nn.Module):
    def __init__(self, width: int = 8, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 1)
        self.norm = norm(width)
        self.second = nn.Conv2d(width, width, 1)
        self.third = nn.Conv2d(width, width, 1)
        self.third.weight = self.second.weight
        self.auxiliary: nn.Module | None = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.norm(self.first(x))))


def loaded(model: nn.Module) -> nn.Module:
    """Through the emitted file."""
    builder = Builder("the tests", (f"from {__name__} import Net",), "Net()")
    text = emit_loader(builder, compare(Net(), model), title="Net", kind="Net", convention="batch", shape=(1, 3, 4, 4))
    scope: dict[str, Any] = {"__name__": "model", "Net": Net}
    exec(compile(text.replace(builder.lines[0], ""), "model.py", "exec"), scope)
    found: nn.Module = scope["build"]()
    found.load_state_dict(model.state_dict(), strict=True)
    return found


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, Frozen])
def test_the_file_builds_the_other_model(norm: Callable[[int], nn.Module]) -> None:
    model = Net(5, norm).eval()
    model.first.weight.requires_grad_(False)
    del model.auxiliary
    found = loaded(model).eval()
    assert type(found) is Net
    assert type(found.norm) is type(model.norm)
    assert {n: p.requires_grad for n, p in found.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert found.third.weight is found.second.weight
    assert "auxiliary" not in dict(found.named_modules())
    assert {k: (v.shape, v.dtype) for k, v in found.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in model.state_dict().items()
    }
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(found(x), model(x))
    assert repr(found.first) == repr(model.first)


def test_nothing_to_say_of_the_same() -> None:
    found = compare(Net(), Net())
    assert not found.layers
    assert not found.removed
    assert not found.gradients


def more(model: Net) -> None:
    model.extra = nn.Linear(2, 2)


def nested(model: Net) -> None:
    model.norm = nn.Sequential(nn.BatchNorm2d(8))


def hidden(model: Net) -> None:
    layer = Frozen(8)
    layer.__dict__["table"] = {"a": object()}
    model.norm = layer


def unsaved(model: Net) -> None:
    model.norm.register_buffer("running_mean", torch.zeros(3), persistent=False)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (more, "extra is not there in the original"),
        (nested, "is not there in the original"),
        (hidden, "has an attribute 'table' that cannot be written down"),
        (unsaved, "has a buffer 'running_mean' that no state_dict holds"),
    ],
)
def test_what_the_file_has_no_words_for_is_refused(change: Callable[[Net], None], what: str) -> None:
    model = Net()
    change(model)
    with pytest.raises(CompilerError, match=what):
        compare(Net(), model)


def test_builders() -> None:
    mine = {"kind": "callable", "model": "package.module:Nets.small", "directory": "/x"}
    assert builder_of(mine).lines == ("from package.module import Nets",)
    assert builder_of({"kind": "artefact", "source": mine}).expression == "Nets.small()"
    assert builder_of({"kind": "torchvision", "model": "ssd300_vgg16"}).expression == (
        'torchvision.models.get_model("ssd300_vgg16", weights=None, weights_backbone=None)'
    )
    with pytest.raises(CompilerError, match="it was given in memory"):
        builder_of(None)
