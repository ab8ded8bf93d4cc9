"""Models that ask about sizes: only to refuse some, and otherwise."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.backends.compile import compile as compile_model
from secateur.compiler.capture import trace
from secateur.compiler.size_checks import only_refusals

NOTE = "the model computes with sizes, which are those of the example inputs"


class Asking(nn.Module):
    """A network with a question in front of it and one behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def asked(self, x: Tensor) -> Tensor:
        """Answer with the input."""
        return x

    def between(self, x: Tensor) -> Tensor:
        """Answer with the features."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        x = self.between(F.relu(self.conv1(self.asked(x))))
        x = F.relu(self.conv2(F.interpolate(x, size=size)))
        return self.fc(x.mean((2, 3)))


class Multiple(Asking):
    """Refuses in a function of its own, and asks again for what it says."""

    def asked(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % 8 != 0 or width % 8 != 0:
            wanted = (height // 8 + 1) * 8 if height % 8 != 0 else height
            raise ValueError(f"{height} rows, not {wanted}")
        return x


class Asserting(Asking):
    """Refuses other ranks, types and numbers of channels, and small images."""

    def asked(self, x: Tensor) -> Tensor:
        assert len(x.shape) == 4
        assert x.dtype == torch.float32
        assert x.shape[1] == 3
        assert x.shape[0] > 0
        assert x.shape[-1] >= 4
        return x

    def between(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.size(1) == 0 or x.device.type == "none" or x.device != self.fc.weight.device:
            return x * 2
        if x.device == torch.device("cuda") or x.dtype in (torch.float16, torch.bfloat16) or x.is_cuda:
            return x * 3
        nothing = torch.empty((x.shape[0], 0, x.shape[2]), device=x.device)
        return x if x.size(1) == 8 and nothing.size(1) == 0 else x + 1


class Deep(Asking):
    """Asks for what is computed from a size in many steps."""

    def asked(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        for step in range(40):
            size = size + step
        if size < 0:
            raise ValueError
        return x


@pytest.mark.parametrize("kind", [Multiple, Asserting, Deep])
def test_sizes_stay_free_where_a_model_only_refuses_some(kind: type[Asking]) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(2, 3, 16, 16)
    program = trace(model, x)
    assert program.notes == ()
    other = torch.randn(3, 3, 24, 40)
    assert torch.equal(program.module(other), model(other))
    compact = compile_model(program, pipeline="prune{ratio=0.3}")
    assert compact.module(other).shape == (3, 5)


class Small(Asking):
    """Does something else with small images."""

    def asked(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[-1] < 4 else x


class Square(Asking):
    """Refuses what is not square and of another size; but other squares it takes."""

    def asked(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 16:
            if x.shape[-1] != x.shape[-2]:
                raise ValueError("not square")
            return x * 2
        return x


class Failing(Asking):
    """Would fail by itself for other sizes, as far as a tracer can see: that is no refusal."""

    def asked(self, x: Tensor) -> Tensor:
        return x if x.shape[-1] == 16 else x * float(x.mean())


class Cut(Asking):
    """Asks about a size that is the same for all images but small ones."""

    def between(self, x: Tensor) -> Tensor:
        x = x[..., :8]
        return x * 2 if x.shape[-1] < 8 else x


class Strided(Asking):
    """Asks about a size that is the same for most small images."""

    def between(self, x: Tensor) -> Tensor:
        return x * 2 if F.max_pool2d(x, 8, ceil_mode=True).shape[-1] > 1 else x


class Counting(Asking):
    """Needs a size as a number."""

    def asked(self, x: Tensor) -> Tensor:
        assert x.shape[-1] > 2
        return x * sum(range(x.shape[-1]))


class Last(nn.Module):
    """Has channels in the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        return self.fc(x if x.shape[1] < 10 else x * 2).mean((1, 2))


class Sequences(nn.Module):
    """Its second axis is no number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x if x.shape[1] < 10 else x * 2).sum(1)


@pytest.mark.parametrize("kind", [Small, Square, Failing, Cut, Strided, Counting, Last, Sequences])
def test_sizes_are_those_of_the_example_where_they_decide(kind: type[nn.Module]) -> None:
    x = torch.randn(2, 3, 4) if kind is Sequences else torch.randn(2, 3, 16, 16)
    assert trace(kind().eval(), x).notes == (NOTE,)


@pytest.mark.parametrize(
    ("accepts", "holds"),
    [
        (lambda a, b, c: a and b and c, True),
        (lambda a, b, c: a and (b or c), False),
        (lambda a, b, c: a or b or c, False),
    ],
)
def test_all_paths_are_followed(accepts: Callable[..., bool], holds: bool) -> None:
    def trial(forced: Sequence[bool]) -> tuple[list[bool], bool]:
        answers = [*forced, True, True, True][:3]
        return answers, not accepts(*answers)

    assert only_refusals([True, True, True], trial) is holds


def test_endless_questions_are_given_up() -> None:
    assert not only_refusals([True] * 65, lambda forced: (forced, True))
    assert only_refusals([True] * 63, lambda forced: (forced, True))


class Elsewhere(nn.Module):
    """Brings tensors to where it is, or elsewhere."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)
        self.how = how

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "device":
                x = x.to(self.device, non_blocking=True)
            case "keyword":
                x = x.to(device=self.device)
            case "type":
                x = x.to(self.device, torch.float64).float()
            case "text":
                return self.fc(x).to("cpu")
            case "method":
                return self.fc(x).cpu()
            case _:
                x = x.to(self.device, copy=True)
        return self.fc(x)


@pytest.mark.parametrize(
    ("how", "calls"),
    [("device", []), ("keyword", []), ("type", ["to", "float"]), ("text", ["to"]), ("method", ["cpu"]), ("", ["to"])],
)
def test_tensors_are_left_where_the_model_is(how: str, calls: list[str]) -> None:
    model, x = Elsewhere(how), torch.randn(2, 3)
    program = trace(model, x)
    assert [node.target for node in program.graph.nodes if node.op == "call_method"] == calls
    assert torch.equal(program.module(x), model(x))
