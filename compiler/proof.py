"""The exactness check: compact(x) == masked(x) in float64, on random batches of two sizes.

    max |compact - masked| <= 1e-9 max |masked|

The second batch has another spatial size too where the original accepts one. The original is never held in float64
as a whole (see :mod:`.oracle`), and of what is compared with it, one module at a time.

Weights may make a comparison worthless. A model may answer every input alike; or it may amplify rounding errors so much
that not even it agrees with itself, when its input changes by one unit in the last place. The equality that is to be
proven holds for all weights, so it is then proven with drawn ones, which do neither.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from .auxiliary import as_graph, comparable
from .errors import ProofError
from .oracle import MaskedOriginal
from .plan import Plan, index_tensor
from .precision import float64_throughout
from .program import InputSpec, Program, referenced_tree
from .random_state import random_state
from .shapes import infer

TOLERANCE: Final = 1e-9
_GAINS: Final = (1.0, 0.7, 0.5)
"""Of drawn weights: with smaller ones, less of a signal gets through, and less of any error."""


@dataclass(frozen=True)
class Trial:
    """One random batch."""

    shapes: tuple[tuple[int, ...], ...]
    error: float
    """max |compact - masked|."""
    scale: float
    """max |masked|."""
    weights: str = "own"
    """"own", or "random" where nothing can be told with the model's own weights."""
    noise: float = 0.0
    """How far the original's output moves, relative to its largest, when its input changes by one unit in the last
    place; measured where the comparison fails."""

    @property
    def within(self) -> bool:
        """Whether the two agree."""
        return self.error <= TOLERANCE * self.scale or self.error == 0.0

    @property
    def decides(self) -> bool:
        """Whether a disagreement would mean anything: the original agrees with itself much better than is asked."""
        return self.noise <= 1e-2 * TOLERANCE

    @property
    def relative(self) -> float:
        """The error relative to the largest output."""
        return self.error / self.scale if self.scale > 0 else self.error


@dataclass(frozen=True)
class Proof:
    """Outcome of the check."""

    trials: tuple[Trial, ...]
    vacuous: bool
    """Whether the original's output hardly depends on its input even with random weights: the check says little."""

    @property
    def error(self) -> float:
        """The largest relative error, of what decides."""
        return max((t.relative for t in self.trials if t.decides), default=0.0)

    @property
    def holds(self) -> bool:
        """Whether every trial that decides is within tolerance, and there is one."""
        deciding = [t for t in self.trials if t.decides]
        return bool(deciding) and all(t.within for t in deciding)

    def require(self) -> Proof:
        """Return self if the proof holds.

        Raises:
            ProofError: It does not.
        """
        if not any(t.decides for t in self.trials):
            raise ProofError(
                "nothing can be proven in float64: with its own weights and with drawn ones, the model amplifies "
                f"rounding errors to {max(t.noise for t in self.trials):.1e} of its output",
                hint="compile a part of it, or skip the proof (--no-verify)",
            )
        if not self.holds:
            worst = max((t for t in self.trials if t.decides), key=lambda t: t.relative)
            raise ProofError(
                f"the compact model differs from the masked original by {worst.relative:.3g} (tolerance {TOLERANCE:g})",
                where=f"input {worst.shapes}",
                hint="this is a bug of secateur: please report the model and the pipeline",
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the form stored in reports."""
        return {
            "error": self.error,
            "tolerance": TOLERANCE,
            "dtype": "float64",
            "holds": self.holds,
            "vacuous": self.vacuous,
            "trials": [
                {
                    "shapes": [list(s) for s in t.shapes],
                    "error": t.error,
                    "scale": t.scale,
                    "weights": t.weights,
                    "noise": t.noise,
                    "decides": t.decides,
                }
                for t in self.trials
            ],
        }


def prove(
    original: Program,
    compact: nn.Module,
    plan: Plan,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Proof:
    """Compare a compact module with the masked original.

    Args:
        original: The program as captured.
        compact: The rewritten module; not changed.
        plan: What was kept of the original's tensors. With an empty one, the compact module has to equal the original.
        seed: Of the random inputs.
        progress: Told what is being run.

    Returns:
        The outcome; call :meth:`Proof.require` to turn a failure into an error.
    """
    return _prove(original, _Sliced(original, compact, plan), plan, seed, progress)


def prove_rewrite(
    original: Program,
    rewrite: Callable[[Program], Program],
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Proof:
    """Compare what a rewrite makes of a program in float64 with the program.

    For rewrites whose tensors are not simply the original's, indexed by a plan: where the model's own weights decide
    nothing, the rewrite is run again on the program with drawn ones. At no time is more alive, in float64, than one
    program that the rewrite is given and the one that it makes.

    Args:
        original: The program, of any precision; not changed.
        rewrite: Called with copies of it in float64, which it may share tensors with, and which are forgotten then.
        seed: Of the random inputs.
        progress: Told what is being run.

    Returns:
        The outcome; call :meth:`Proof.require` to turn a failure into an error.
    """
    return _prove(original, _Rewritten(original, rewrite), Plan(), seed, progress)


def in_float64(program: Program, state: Mapping[str, Tensor] | None = None) -> Program:
    """Return a copy of a program on the CPU in float64, with the tensors that ``state`` gives in place of its own.

    The tensors of ``state`` are not copied: they become those of the program.
    """
    made: dict[int, Any] = {}
    for name, tensor in program.tensors():
        if id(tensor) not in made:
            wide = state[name] if state is not None and name in state else _copied(tensor)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(wide, requires_grad=tensor.requires_grad) if is_parameter else wide
    # Given as what was copied already, each tensor is made once, without a copy in its own precision on the way.
    root = copy.deepcopy(referenced_tree(program.root, program.graph), made)
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    inputs = tuple(
        InputSpec(i.name, i.shape, torch.float64 if i.dtype.is_floating_point else i.dtype) for i in program.inputs
    )
    copied = replace(program, graph=graph, root=root, inputs=inputs)
    infer(copied)
    return copied


def release(module: nn.Module) -> None:
    """Empty a module that is not needed any more, so that what only it holds is freed; its layers stay as they are.

    A ``GraphModule`` and its graph refer to each other: without this, its tensors would stay until Python next looks
    for such cycles. Of a large model, these are gigabytes.
    """
    module._modules.clear()
    module._parameters.clear()
    module._buffers.clear()


class _Candidate(ABC):
    """Where the modules come from that are compared with the original: one at a time, float64, evaluation mode."""

    @abstractmethod
    def own(self) -> nn.Module:
        """Return the module with the model's own weights."""

    @abstractmethod
    def drawn(self, generator: torch.Generator, gain: float) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """Return it with random weights, and these by the original's names; the module returned before is gone."""


class _Sliced(_Candidate):
    """A given module, whose tensors are the original's, indexed by a plan."""

    def __init__(self, original: Program, compact: nn.Module, plan: Plan) -> None:
        self.original, self.plan = original, plan
        self.module = as_graph(copy.deepcopy(compact).to("cpu").double().eval(), original)

    def own(self) -> nn.Module:
        return self.module

    def drawn(self, generator: torch.Generator, gain: float) -> tuple[nn.Module, Mapping[str, Tensor]]:
        state = random_state(self.original, generator, gain)
        for name, tensor in [*self.module.named_parameters(), *self.module.named_buffers()]:
            if name in state:
                tensor.copy_(index_tensor(state[name], self.plan.kept.get(name, {})))
        return self.module, state


class _Rewritten(_Candidate):
    """What a rewrite makes of the original with the weights asked for."""

    def __init__(self, original: Program, rewrite: Callable[[Program], Program]) -> None:
        self.original, self.rewrite = original, rewrite
        self.module: nn.Module = nn.Module()

    def own(self) -> nn.Module:
        return self._make(None)

    def drawn(self, generator: torch.Generator, gain: float) -> tuple[nn.Module, Mapping[str, Tensor]]:
        release(self.module)
        again = generator.clone_state()
        made = self._make(random_state(self.original, generator, gain))
        # The rewrite may have kept what it was given, or changed it: the original has draws of its own, the same ones.
        return made, random_state(self.original, again, gain)

    def _make(self, state: Mapping[str, Tensor] | None) -> nn.Module:
        self.module = self.rewrite(in_float64(self.original, state)).module.eval()
        return self.module


def _prove(original: Program, candidate: _Candidate, plan: Plan, seed: int, progress: Callable[[str], None]) -> Proof:
    generator = torch.Generator().manual_seed(seed)
    check = _Check(original, plan, generator, progress)
    with torch.no_grad(), float64_throughout():
        module = candidate.own()
        latest, constant = check.run(MaskedOriginal(original, plan), module, "own")
        trials = list(latest)
        for gain in _GAINS:
            if not constant and all(t.decides for t in latest):
                break
            why = "the model answers every input alike" if constant else "the model amplifies rounding errors"
            progress(f"{why}: proving with random weights too")
            module, state = candidate.drawn(generator, gain)
            latest, constant = check.run(MaskedOriginal(original, plan, state), module, "random")
            del state  # before the next is drawn
            trials += latest
    release(module)
    return Proof(tuple(trials), vacuous=constant)


@dataclass(frozen=True)
class _Check:
    """What the runs with different weights share."""

    original: Program
    plan: Plan
    generator: torch.Generator
    progress: Callable[[str], None]

    def run(self, masked: MaskedOriginal, candidate: nn.Module, weights: str) -> tuple[list[Trial], bool]:
        """Compare on both batches; also tell whether the original's answers did not depend on the input."""
        trials: list[Trial] = []
        outputs: list[Tensor] = []
        for candidates in _input_shapes(self.original):
            for shapes in candidates:
                inputs = [_random(s, i, self.generator) for s, i in zip(shapes, self.original.inputs, strict=True)]
                self.progress(f"proving on {' and '.join('x'.join(map(str, s)) for s in shapes)}")
                try:
                    expected = masked.run(*(x.clone() for x in inputs))
                except Exception:
                    if shapes is candidates[-1]:
                        raise
                    continue  # the original does not take this size
                trial = _compare(shapes, *comparable(candidate, inputs, self.original, expected), weights)
                if not trial.within:
                    moved = masked.run(*(_nudged(x, self.generator) for x in inputs))
                    noise = _compare(shapes, moved, expected, weights).relative
                    trial = replace(trial, noise=noise)
                trials.append(trial)
                outputs = _tensors(expected)
                break
        return trials, all(_constant(x) for x in outputs)


def _copied(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU, in float64 if it holds real numbers."""
    return tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True)


def _input_shapes(original: Program) -> list[list[tuple[tuple[int, ...], ...]]]:
    """Two batch sizes; for the second, other spatial sizes are tried first, where the program claims any."""
    inputs = original.inputs
    first = tuple((2, *i.shape[1:]) for i in inputs)
    same = tuple((3, *i.shape[1:]) for i in inputs)
    smaller = tuple((3, *i.shape[1:2], *(_smaller(s) for s in i.shape[2:])) for i in inputs)
    return [[first], [same] if original.sized or smaller == same else [smaller, same]]


def _smaller(size: int) -> int:
    """A spatial size below ``size`` that strides of 32 still divide, if there is one."""
    return max(32, int(size * 0.72) // 32 * 32) if size > 32 else size


def _random(shape: tuple[int, ...], spec: InputSpec, generator: torch.Generator) -> Tensor:
    if spec.dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.randint(0, 2, shape, generator=generator).to(spec.dtype)


def _nudged(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move every real number by about one unit in the last place."""
    if not x.is_floating_point():
        return x.clone()
    signs = torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
    return x * (1.0 + 2.0**-52 * signs)


def _compare(shapes: tuple[tuple[int, ...], ...], actual: Any, expected: Any, weights: str) -> Trial:
    mine, theirs = _tensors(actual), _tensors(expected)
    if [t.shape for t in mine] != [t.shape for t in theirs]:
        raise ProofError(
            f"the compact model returns {[tuple(t.shape) for t in mine]}, "
            f"the original {[tuple(t.shape) for t in theirs]}"
        )
    error = max((float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True) if a.numel()), default=0.0)
    scale = max((float(b.abs().max()) for b in theirs if b.numel()), default=0.0)
    return Trial(shapes, float("inf") if error != error else error, scale, weights)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for key in sorted(value) for t in _tensors(value[key])]
    if isinstance(value, (tuple, list)):
        return [t for part in value for t in _tensors(part)]
    return []


def _constant(output: Tensor) -> bool:
    """Whether all samples of a batch got all but the same result."""
    return output.ndim > 0 and bool((output - output[:1]).abs().max() <= 1e-6 * output.abs().max())
