"""When a comparison says nothing: weights that amplify rounding errors are replaced by drawn ones."""

import pytest
import torch
from torch import Tensor, nn

from secateur.backends.checks import check
from secateur.compiler.capture import trace
from secateur.compiler.errors import ProofError
from secateur.compiler.plan import Plan
from secateur.compiler.proof import Proof, Trial, in_float64, prove
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


def test_a_wrong_rewrite_of_a_chaotic_model_is_still_found() -> None:
    program = in_float64(trace(Chaotic(100.0).eval(), torch.zeros(SHAPE)))
    folded = FoldBN().run(program).program.module

    def wrong(other: object) -> nn.Module:
        made = FoldBN().run(other).program.module  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            made.get_parameter("blocks.3.0.bias").add_(1e-6)
        return made

    assert not prove(program, folded, Plan(), remake=wrong).holds


def test_what_does_not_decide_does_not_count() -> None:
    undecided = Trial(((2, 3),), 0.5, 1.0, noise=1e-3)
    good, bad = Trial(((2, 3),), 1e-12, 1.0), Trial(((2, 3),), 1e-6, 1.0)
    assert Proof((undecided, good), vacuous=False).holds
    assert not Proof((undecided, bad), vacuous=False).holds
    assert not Proof((undecided,), vacuous=False).holds
    assert Proof((undecided, good), vacuous=False).error == 1e-12
