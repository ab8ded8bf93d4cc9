"""When a comparison says nothing, weights are drawn; and how much is held in float64 at a time."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from secateur.backends.checks import check
from secateur.compiler.capture import trace
from secateur.compiler.collection import no_collection
from secateur.compiler.errors import ProofError
from secateur.compiler.plan import Plan
from secateur.compiler.program import Program
from secateur.compiler.proof import Proof, Trial, in_float64, prove, prove_rewrite
from secateur.passes.fold_bn import FoldBN
from secateur.passes.pipeline import PassPipeline
from support.exact import lively

SHAPE = (1, 3, 4, 4)


class Chaotic(nn.Module):
    """Sines of large numbers: each layer loses more than a digit, unless weights are small."""

    def __init__(self, weight: float, layers: int = 12) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        lively(self)
        with torch.no_grad():
            for block in blocks:
                block[0].get_parameter("weight").mul_(weight)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.sin(block(x))
        return x


class Logistic(nn.Module):
    """Chaotic whatever its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.bn(self.conv(x)))
        for _ in range(80):
            x = 3.95 * x * (1.0 - x)
        return x


def proof_of_folding(module: nn.Module) -> Proof:
    program = trace(lively(module) if isinstance(module, Logistic) else module.eval(), torch.zeros(SHAPE))
    result = PassPipeline([FoldBN()]).run(program)
    (found,) = check(program, result.steps, result.program.module)
    assert found.proof is not None
    return found.proof


def test_a_calm_model_is_decided_by_its_own_weights() -> None:
    proof = proof_of_folding(Chaotic(1.0))
    assert proof.holds
    assert [(t.weights, t.decides) for t in proof.trials] == [("own", True)] * 2


def test_a_chaotic_one_is_decided_by_drawn_weights() -> None:
    proof = proof_of_folding(Chaotic(100.0))
    assert proof.holds
    assert not any(t.decides for t in proof.trials if t.weights == "own")
    assert all(t.noise > 1e-11 for t in proof.trials if t.weights == "own")
    assert all(t.decides and t.within for t in proof.trials[-2:])
    assert proof.trials[-1].weights == "random"
    assert proof.error < 1e-9


def test_where_nothing_decides_nothing_is_proven() -> None:
    with pytest.raises(ProofError, match="nothing can be proven in float64"):
        proof_of_folding(Logistic())


def fold(program: Program) -> Program:
    return FoldBN().run(program).program


def shifted(program: Program) -> Program:
    """Fold, and get one bias wrong."""
    made = fold(program)
    with torch.no_grad():
        made.owner("blocks.3.0").get_parameter("bias").add_(1e-5)
    return made


def spoilt(program: Program) -> Program:
    """Change what was given, in place, and pass it on."""
    with torch.no_grad():
        program.owner("blocks.3.1").get_parameter("bias").add_(1e-5)
    return program


@pytest.mark.parametrize("weight", [1.0, 100.0], ids=["own weights", "drawn weights"])
@pytest.mark.parametrize("wrong", [shifted, spoilt])
def test_a_wrong_rewrite_is_found(weight: float, wrong: Callable[[Program], Program]) -> None:
    program = trace(Chaotic(weight).eval(), torch.zeros(SHAPE))
    assert prove_rewrite(program, fold).holds
    proof = prove_rewrite(program, wrong)
    assert any(t.decides for t in proof.trials)
    assert not proof.holds


def kernels() -> int:
    """Count the convolution weights of ``Chaotic`` that live in float64, in garbage too."""
    found = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float64]
    return len({t.untyped_storage().data_ptr() for t in found if t.shape == (3, 3, 1, 1)})


def test_one_program_at_a_time_is_held_in_float64() -> None:
    program = trace(Chaotic(100.0, layers=5).eval(), torch.zeros(SHAPE))
    given: list[int] = []
    compared: list[int] = []

    def counted(wide: Program) -> Program:
        given.append(kernels() - before)
        return fold(wide)

    def told(text: str) -> None:
        if text.startswith("proving on"):
            compared.append(kernels() - before)

    gc.collect()
    with no_collection():
        before = kernels()
        assert prove_rewrite(program, counted, progress=told).holds
        left = kernels() - before
    assert given[:2] == [5, 5]  # what the rewrite is to work on, of which drawn weights are a part
    assert compared[:4] == [5, 5, 10, 10]  # what it made, and drawn weights beside it, but never the own ones
    assert left == 0


def test_nothing_is_left_of_the_copy_that_was_compared() -> None:
    module = Chaotic(1.0).eval()
    program = trace(module, torch.zeros(SHAPE))
    gc.collect()
    with no_collection():
        before = kernels()
        assert prove(program, program.module, Plan()).holds
        assert kernels() == before
    assert program.module.get_parameter("blocks.0.0.weight").dtype == torch.float32


def test_a_float64_copy_shares_what_is_shared_and_nothing_with_the_original() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)).double()
    module[2].weight = module[0].weight
    module[0].weight.requires_grad_(False)
    program = trace(module.eval(), torch.zeros(SHAPE, dtype=torch.float64))
    wide = in_float64(program).module
    for name, tensor in wide.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name])
        assert tensor.data_ptr() != module.state_dict()[name].data_ptr()
    assert wide.get_parameter("0.weight") is wide.get_parameter("2.weight")
    assert not wide.get_parameter("0.weight").requires_grad
    assert wide.get_parameter("0.bias").requires_grad
    assert wide.get_buffer("1.num_batches_tracked").dtype == torch.int64


def test_a_float64_copy_takes_over_the_tensors_that_it_is_given() -> None:
    program = trace(nn.Sequential(nn.Conv2d(3, 3, 1)).eval(), torch.zeros(SHAPE))
    given = torch.randn(3, 3, 1, 1, dtype=torch.float64)
    wide = in_float64(program, {"0.weight": given})
    assert dict(wide.tensors())["0.weight"].data_ptr() == given.data_ptr()
    assert torch.equal(dict(wide.tensors())["0.bias"], dict(program.tensors())["0.bias"].double())


def test_what_does_not_decide_does_not_count() -> None:
    undecided = Trial(((2, 3),), 0.5, 1.0, noise=1e-3)
    good, bad = Trial(((2, 3),), 1e-12, 1.0), Trial(((2, 3),), 1e-6, 1.0)
    assert Proof((undecided, good), vacuous=False).holds
    assert not Proof((undecided, bad), vacuous=False).holds
    assert not Proof((undecided,), vacuous=False).holds
    assert Proof((undecided, good), vacuous=False).error == 1e-12
