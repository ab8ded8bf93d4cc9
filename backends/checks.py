"""The proof of a whole pipeline run, stretch by stretch, each as its passes promise (``passes.base.Contract``).

MASKED       out(x) == masked(in)(x)             one plan over all passes of the stretch
EXACT        P(float64(in))(x) == in(x), and     the algebra of all passes of the stretch, in float64
             out == round(P(float64(in)))        the result of each, tensor by tensor, bit for bit
APPROXIMATE  nothing is claimed; what the pass measured itself (on calibration data) is passed on
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..compiler.errors import ProofError
from ..compiler.plan import Plan
from ..compiler.plan import compose as compose_plans
from ..compiler.program import Program
from ..compiler.proof import TOLERANCE, Proof, in_float64, prove, prove_rewrite, release
from ..passes.base import Contract
from ..passes.pipeline import Step
from .source.emit import emitted_state

_PIECE: Final = 1 << 22
"""Elements that are compared at a time."""


@dataclass(frozen=True)
class Checked:
    """What was found about passes that stand together and promise the same."""

    passes: tuple[str, ...]
    """As canonical pipeline text."""
    contract: Contract
    proof: Proof | None
    """``None`` for APPROXIMATE passes."""
    measured: Mapping[str, int | float] = field(default_factory=dict[str, "int | float"])
    """Figures of APPROXIMATE passes."""

    def to_json(self) -> dict[str, Any]:
        """Return the form stored in reports."""
        found = self.proof.to_json() if self.proof is not None else {"measured": dict(self.measured)}
        return {"passes": list(self.passes), "contract": self.contract.value, **found}


def check(
    original: Program,
    steps: Sequence[Step],
    module: nn.Module,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[Checked, ...]:
    """Check a run.

    Args:
        original: The program that the first pass was given.
        steps: The run.
        module: What came out in the end, as the user gets it.
        seed: Of the random inputs.
        progress: Told what is being run.

    Raises:
        ProofError: A promise was not kept.
    """
    changed = [step for step in steps if step.changed]
    if not changed:
        proof = prove(original, module, Plan(), seed=seed, progress=progress).require()
        return (Checked((), Contract.EXACT, proof),)
    found: list[Checked] = []
    for contract, group in groupby(changed, key=lambda step: step.pass_.contract):
        stretch = tuple(group)
        texts = tuple(step.text for step in stretch)
        if contract is Contract.APPROXIMATE:
            found += [Checked((step.text,), contract, None, step.stats) for step in stretch]
            continue
        result = module if stretch[-1] is changed[-1] else stretch[-1].program.module
        prover = _masked if contract is Contract.MASKED else _exact
        found.append(Checked(texts, contract, prover(stretch, result, seed, progress)))
    return tuple(found)


def summary(found: Iterable[Checked]) -> dict[str, Any]:
    """Return the ``verification`` of a report: the worst of what is proven, and every stretch."""
    checked = list(found)
    proofs = [c.proof for c in checked if c.proof is not None]
    return {
        "error": max((p.error for p in proofs), default=None),
        "tolerance": TOLERANCE,
        "dtype": "float64",
        "holds": all(p.holds for p in proofs),
        "vacuous": any(p.vacuous for p in proofs),
        "stretches": [c.to_json() for c in checked],
    }


def compose(original: Program, steps: Iterable[Step]) -> Plan:
    """Return one plan for all steps, in terms of the original's tensors."""
    shapes = {name: tuple(tensor.shape) for name, tensor in original.tensors()}
    return compose_plans((step.plan for step in steps), shapes)


def _masked(steps: Sequence[Step], result: nn.Module, seed: int, progress: Callable[[str], None]) -> Proof:
    before = steps[0].before
    return prove(before, result, compose(before, steps), seed=seed, progress=progress).require()


def _exact(steps: Sequence[Step], result: nn.Module, seed: int, progress: Callable[[str], None]) -> Proof:
    # One after another: of a large model, what a single pass is given and makes in float64 is all that memory holds.
    for step in steps:
        _check_rounding(step, result if step is steps[-1] else step.program.module)

    def again(program: Program) -> Program:
        for step in steps:
            program = step.pass_.run(program).program
        return program

    return prove_rewrite(steps[0].before, again, seed=seed, progress=progress).require()


def _check_rounding(step: Step, result: nn.Module) -> None:
    """Compare every tensor of a pass's result with what the same pass makes of the program in float64, rounded."""
    wide = step.pass_.run(in_float64(step.before)).program
    exact, rounded = emitted_state(wide), result.state_dict()
    strangers = (wide.module.state_dict().keys() - rounded.keys()) | (rounded.keys() - exact.keys())
    if strangers:
        raise ProofError(f"{step.text}: in float64 the pass makes other tensors ({min(strangers)!r})")
    for name, tensor in rounded.items():
        if not _rounds_to(exact[name], tensor.cpu()):
            raise ProofError(f"{step.text}: {name!r} is not what the same pass gives in float64, rounded")
    release(wide.module)


def _rounds_to(exact: Tensor, rounded: Tensor) -> bool:
    """Tell whether a tensor is another one, rounded to its dtype; a piece at a time, since the largest are large."""
    if exact.shape != rounded.shape:
        return False
    pairs = zip(exact.flatten().split(_PIECE), rounded.flatten().split(_PIECE), strict=True)
    return all(_same(e.to(r.dtype), r) for e, r in pairs)


def _same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors of one dtype hold the same; a NaN is the same as another."""
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
