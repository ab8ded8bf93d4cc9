"""Who reads channels, what they read, and that the user's module is left alone."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.passes.calibration import read
from secateur.passes.prune.criteria.base import Context
from secateur.passes.prune.criteria.running import Reader, activations, private, readers, run
from support.pruning import deps_of, program_of
from support.scores import context_of
from support.zoo import ZOO


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("plain", ["head"]),
        ("residual", ["body", "head"]),
        ("depthwise", ["head"]),  # the depthwise convolution passes its channels on
        ("transposed_depthwise", ["head"]),
        ("grouped_then_other_groups", ["a", "b", "head"]),
        ("functional_weights", ["linear"]),
        ("called_twice", ["body", "body_1", "head"]),
    ],
)
def test_the_readers_of_a_net(case: str, expected: list[str]) -> None:
    found = [reader.node.name for reader in readers(program_of(case), deps_of(case))]
    assert found == expected, "what reads the image alone reads no channels"


def test_the_classes_that_a_reader_reads() -> None:
    deps = deps_of("flatten_to_linear")
    first, *_ = readers(program_of("flatten_to_linear"), deps)
    stem = next(s for s in deps.slices if s.name == "stem.weight" and s.axis == 0)
    assert first.axis == 1
    assert first.classes.tolist() == deps.class_of[stem.atoms].repeat(64).tolist()


def test_each_tensor_is_shown_once_as_it_is_read() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x), inplace=True)
            return self.a(x) + self.b(x)

    module, x = Net(), torch.randn(2, 3, 5, 5)
    seen: list[tuple[Reader, Tensor]] = []
    activations(context_of(module, x, x * 2), lambda reader, value: seen.append((reader, value.clone())))
    assert [reader.node.name for reader, _ in seen] == ["a", "a"]
    torch.testing.assert_close(seen[1][1], F.relu(module.stem(x * 2)))


@pytest.mark.parametrize("case", ["batch_norm", "in_place", "input_changed_in_place", "tied_weights", "dropout"])
def test_a_private_program_is_the_model_in_evaluation(case: str) -> None:
    module, x = ZOO[case].module(), ZOO[case].examples(batch=3)
    given = tuple(part.clone() for part in x)
    expected = module.eval()(*(part.clone() for part in x))
    module.train()
    program = program_of(case)
    found = run(private(program), x, {}, lambda reader, value: value)
    torch.testing.assert_close(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(x, given, strict=True)), "inputs stay as they are"


def test_the_users_module_is_left_alone() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    context = context_of(module, torch.randn(8, 3, 2, 2))
    module.train()
    module[0].requires_grad_(False)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    copy = private(context.program, lambda p: p.requires_grad_())
    output = cast("Tensor", run(copy, context.batches[0].inputs, {}, lambda reader, x: x))
    output.sum().backward()
    assert copy.attribute("0.weight").grad is not None, "frozen or not, the copy has gradients"
    assert all(p.grad is None for p in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True, True, True]
    assert all(part.training for part in module.modules())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_half_precision_runs_as_float32() -> None:
    program = program_of("plain")
    half = context_of(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).half(), torch.zeros(1, 3, 4, 4).half())
    seen: list[torch.dtype] = []
    activations(half, lambda reader, x: seen.append(x.dtype))
    assert seen == [torch.float32]
    assert next(p for _, p in program.tensors()).dtype == torch.float32
    double = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).double()
    seen.clear()
    activations(context_of(double, torch.zeros(1, 3, 4, 4).double()), lambda reader, x: seen.append(x.dtype))
    assert seen == [torch.float64]


def test_progress_is_told() -> None:
    program, told = program_of("plain"), list[str]()
    data = read([torch.zeros(1, 3, 8, 8)] * 2, program)
    activations(Context(program, deps_of("plain"), data, progress=told.append), lambda reader, x: None)
    assert told == ["looking at activations: batch 1 of 2", "looking at activations: batch 2 of 2"]
