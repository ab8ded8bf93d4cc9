"""Gradients on data: which loss, and the gradient of a channel's mask against one written by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.compiler.errors import CompilerError, SourceError
from secateur.passes.calibration import read
from secateur.passes.prune.criteria.base import Context
from secateur.passes.prune.criteria.gradients import differentiable, loss_of, mask_gradients, weight_gradients
from support.pruning import deps_of, program_of, use_of
from support.scores import context_of, linear
from support.zoo import ZOO

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0]])


def test_the_loss_of_a_classifier() -> None:
    own = torch.log(1 + torch.exp(torch.tensor(-2.0))) + torch.log(1 + torch.exp(torch.tensor(-1.0)))
    assert loss_of(LOGITS, None) == pytest.approx(own), "its own top-1"
    other = own + 2.0
    assert loss_of((LOGITS, torch.ones(2, 3)), torch.tensor([1, 1])) == pytest.approx(other), "the first output"


def test_the_loss_of_what_is_no_classifier() -> None:
    assert loss_of({"out": torch.full((2, 3, 1), 2.0), "n": torch.tensor(7)}, None) == 24.0
    assert loss_of((torch.tensor([[3.0]]), torch.ones(2)), torch.tensor([1])) == 11.0


def test_labels_that_the_model_has_no_output_for() -> None:
    with pytest.raises(SourceError, match="go up to 2, and the model has 2 outputs"):
        loss_of(LOGITS, torch.tensor([0, 2]))


def test_an_output_without_real_numbers() -> None:
    with pytest.raises(CompilerError, match="no real numbers"):
        loss_of(torch.tensor([1]), None)


def test_weights_times_their_gradients() -> None:
    """x = 1, h = (1, 2), y = 3 - 2 = 1, L = y^2: dL/da = 2 y b = (6, -2) and dL/db = 2 y h = (2, 4)."""
    with torch.no_grad():  # whatever the caller does
        (found,) = weight_gradients(
            context_of(nn.Sequential(linear([1.0], [2.0]), linear([3.0, -1.0])), torch.ones(1, 1))
        )
    assert found["0.weight"].ravel().tolist() == [6.0, -4.0]
    assert found["1.weight"].ravel().tolist() == [6.0, -4.0]


class Net(nn.Module):
    """Two branches on a trunk, in float64; ``mask`` [N, 4] multiplies the trunk wherever a layer reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.masked(x, None)

    def masked(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.a(x if mask is None else x * mask[:, :, None, None])
        x = x.mean((2, 3))
        return self.b(x if mask is None else x * mask)


def by_hand(module: Net, x: Tensor, labels: Tensor) -> Tensor:
    mask = torch.ones(len(x), 4, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(module.eval().masked(x, mask), labels, reduction="sum")
    return torch.autograd.grad(loss, mask)[0]


def test_the_gradient_of_a_mask_is_that_of_a_mask_by_hand() -> None:
    module, x, labels = Net(), torch.randn(3, 3, 6, 6, dtype=torch.float64), torch.tensor([0, 4, 2])
    context = context_of(module, (x, labels))
    trunk = context.deps.class_of[use_of(context.deps, "stem.weight").atoms]
    (found,) = mask_gradients(context)
    torch.testing.assert_close(found[:, trunk], by_hand(module, x, labels))


def test_samples_are_kept_apart_where_a_layer_mixes_the_batch() -> None:
    """A linear layer over [N T, C]: the first axis is not the batch, so samples are run one by one."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = linear([1.0], [2.0]), linear([3.0, -1.0], [1.0, 0.0])

        def forward(self, x: Tensor) -> Tensor:  # [N, T, 1]
            return self.b(self.a(x).reshape(-1, 2)).reshape(-1, 3, 2).sum(1)

    module, x = Tokens(), torch.randn(2, 3, 1)
    context = context_of(module, x)
    classes = context.deps.class_of[use_of(context.deps, "a.weight").atoms]
    parts = list(mask_gradients(context))
    assert [len(part) for part in parts] == [1, 1]
    for part, sample in zip(parts, x, strict=True):
        hidden = module.a(sample[None]).detach().requires_grad_()
        loss = loss_of(module.b(hidden).sum(1), None)
        (gradient,) = torch.autograd.grad(loss, hidden)
        torch.testing.assert_close(part[:, classes].float(), (hidden * gradient).sum((0, 1)).detach()[None])


@pytest.mark.parametrize("case", ["called_twice", "grouped_residual", "flatten_to_linear", "embedding_to_linear"])
def test_gradients_of_other_nets_are_there(case: str) -> None:
    program, deps = program_of(case), deps_of(case)
    (found,) = mask_gradients(Context(program, deps, read([ZOO[case].examples()], program)))
    free = torch.tensor([c for group in deps.groups if group.prunable for c in group.classes.tolist()])
    assert found[:, free].abs().sum() > 0


def test_a_model_that_does_not_run_backwards() -> None:
    with (
        pytest.raises(CompilerError, match="gradients of the model cannot be taken: not differentiable"),
        differentiable(),
    ):
        raise RuntimeError("not differentiable\nat all")
