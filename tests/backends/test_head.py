"""A new head: the layers that logits come from, found by the analysis, with as many outputs as there are classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.backends import inputs
from secateur.backends.head import renew, with_outputs
from secateur.backends.verify import rebuild
from secateur.compiler import vision
from secateur.compiler.errors import OptionError

HEAD = {"outputs": 5, "inputs": [[1, 3, 8, 8]], "seed": 0}


class Net(nn.Module):
    """A stem, its mean, and what comes behind."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.behind = forward

    def forward(self, x: Tensor) -> Any:
        return self.behind(self, self.stem(x).relu())


def classify(self: Any, x: Tensor) -> Tensor:
    return self.fc(x.mean((2, 3)))


def test_the_last_layer_is_drawn_anew_and_nothing_else() -> None:
    net: Any = Net(classify, fc=nn.Linear(6, 9))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert renew(net, HEAD) == ("fc",)
    assert net.fc.out_features == 5
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert net.fc.weight.requires_grad
    assert torch.equal(net.stem.weight, before["stem.weight"])
    again: Any = Net(classify, fc=nn.Linear(6, 9))
    renew(again, HEAD)
    assert torch.equal(again.fc.weight, net.fc.weight), "the seed says which"
    renew(again, HEAD | {"seed": 1})
    assert not torch.equal(again.fc.weight, net.fc.weight)


def test_the_generators_of_the_caller_stay_as_they_are() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    net: Any = Net(classify, fc=nn.Linear(6, 9))
    torch.manual_seed(0)
    renew(net, HEAD)
    assert torch.equal(torch.rand(1), expected)


def test_convolutions_norms_and_sums_of_two_heads() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.norm(self.a(x) + self.b(x)).mean((2, 3))

    net: Any = Net(forward, a=nn.Conv2d(6, 9, 1), b=nn.Conv2d(6, 9, 3, padding=1, bias=False), norm=nn.BatchNorm2d(9))
    assert set(renew(net, HEAD)) == {"a", "b", "norm"}
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    assert net.norm.num_features == 5
    assert (net.a.out_channels, net.b.out_channels) == (5, 5)
    net.train()(torch.randn(2, 3, 8, 8)).sum().backward()


@pytest.mark.parametrize(
    ("forward", "layers", "said"),
    [
        (lambda self, x: x, {}, "is not logits of layers"),
        (lambda self, x: x.mean((2, 3)) @ torch.ones(6, 4), {}, "does not say how its weights are drawn"),
        (lambda self, x: self.fc(x.mean((2, 3)))[:, :4], {"fc": nn.Linear(6, 9)}, "gives other channels as well"),
        (
            lambda self, x: (y := self.fc(x.mean((2, 3)))) + self.more(y),
            {"fc": nn.Linear(6, 9), "more": nn.Linear(9, 9)},
            "reads the outputs again",
        ),
        (lambda self, x: self.fc(x.mean((2, 3))).view(-1, 9), {"fc": nn.Linear(6, 9)}, "does not run with 5 outputs"),
    ],
)
def test_what_is_no_head_is_refused(forward: Any, layers: dict[str, nn.Module], said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        renew(Net(forward, **layers), HEAD)
    assert "as many outputs as there are classes" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["googlenet", "squeezenet1_1", "mobilenet_v3_small"])
def test_networks_of_torchvision(name: str) -> None:
    vision.import_torchvision()
    model = vision.build_model(name)
    renew(model, {"outputs": 5, "inputs": [[1, 3, 64, 64]], "seed": 0})
    model.train()
    found = model(torch.randn(2, 3, 64, 64))
    logits = [found] if isinstance(found, Tensor) else [*found]
    assert len(logits) == (3 if name == "googlenet" else 1)
    assert all(part.shape == (2, 5) for part in logits), "auxiliary heads too"


def test_a_record_builds_the_same_network_again() -> None:
    model = inputs.load("digits")
    made = with_outputs(model, 4, seed=3)
    again = rebuild(made.spec, Path())
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in made.module.state_dict().items())
