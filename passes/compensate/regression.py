"""Ridge regression of a layer's output on what the layer reads, towards the weights that it has.

    minimise over W, b    1/n sum over s of |W x_s + b - t_s|^2  +  rho h |W - W0|^2

    W = W0 + C_ex (C_xx + rho h I)^-1        b = mean(t) - W mean(x)

with covariances C over n samples, e = t - W0 x what the present weights leave, and h the mean of C_xx's diagonal, so
that the ridge rho is free of units. The bias is not held back. Directions in which the data do not vary keep W0.

With fewer samples than inputs (n < J) the same weights come from a system of n equations instead of J:

    W = W0 + e^T (X X^T + n rho h I)^-1 X        X, e centred

rho is the one of ``RIDGES`` that leaves the smallest error on the last samples, which then join the others. Sums of
squares, which are inverted, and weights are in double precision; what there is of every sample in that of the inputs.

Golub and Van Loan, Matrix Computations, section 6.1; Hoerl and Kennard 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ...compiler.patches import gram

RIDGES: Final = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT: Final = 8
"""One sample in so many, at the end, is not fitted when rho is chosen."""
CHUNK: Final = 1 << 13
"""Samples that are multiplied at a time."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A refitted layer: float64."""

    weight: Tensor
    """[g, O/g, J]."""
    bias: Tensor
    """[g, O/g]."""


class Regression:
    """The inputs of one layer, to be fitted to several targets.

    Args:
        inputs: [n, g, J], float32 or float64, finite.
        start: W0 [g, O/g, J].
        target: What rho is chosen by: [n, g, O/g], of the inputs' dtype.
    """

    def __init__(self, inputs: Tensor, start: Tensor, target: Tensor) -> None:
        self._inputs, self._start = inputs, start.double()
        self._given = product(inputs, start)  # W0 x
        held = len(inputs) // HELD_OUT
        fitted, left = inputs[: len(inputs) - held], inputs[len(inputs) - held :]
        self._solver = (_Dual if len(inputs) < inputs.shape[2] else _Primal)()
        self._solver.add(fitted)
        self.ridge = RIDGES[1]
        """rho."""
        if held:
            errors = self._errors(left, target - self._given)
            self.ridge = RIDGES[errors.index(min(errors))]
            self._solver.add(left)
        self._solver.factor(self.ridge)

    def fit(self, target: Tensor) -> Fit:
        """Fit a target [n, g, O/g]."""
        change = self._solver.solve(self._solver.prepared(self._inputs, target - self._given))
        return Fit(self._start + change.weight, change.bias)

    def predict(self, fit: Fit) -> Tensor:
        """Return W x + b for every sample: [n, g, O/g], of the inputs' dtype."""
        moved = fit.weight - self._start
        given = self._given + fit.bias.to(self._given.dtype)
        return given + product(self._inputs, moved) if bool(moved.any()) else given

    def _errors(self, left: Tensor, missing: Tensor) -> list[float]:
        """Fit all but the samples that are left, and return the error on these, for every ridge."""
        fitted = len(missing) - len(left)
        prepared = self._solver.prepared(self._inputs[:fitted], missing[:fitted])
        found: list[float] = []
        for ridge in RIDGES:
            self._solver.factor(ridge)
            change = self._solver.solve(prepared)
            off = product(left, change.weight) + change.bias.to(left.dtype) - missing[fitted:]
            found.append(float(off.square().sum(dtype=torch.float64)))
        return found


def product(inputs: Tensor, weight: Tensor) -> Tensor:
    """Return W x: [n, g, O/g] for inputs [n, g, J], of their dtype."""
    return (inputs.transpose(0, 1) @ weight.transpose(1, 2).to(inputs.dtype)).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A right-hand side [g, J or n, O/g], and the means that the bias follows from."""

    right: Tensor
    target: Tensor
    inputs: Tensor

    def fit(self, change: Tensor) -> Fit:
        """Return a change of the weight with the bias that goes with it."""
        return Fit(change, self.target - torch.einsum("goj,gj->go", change, self.inputs))


class _Primal:
    """J equations. Sums are taken about the mean of the first samples, so that little cancels."""

    def __init__(self) -> None:
        self._count = 0
        self._centre = self._sum = self._squares = self._factor = torch.empty(0, dtype=torch.float64)

    def add(self, inputs: Tensor) -> None:
        """Take more samples in."""
        if not self._count:
            self._centre = inputs.mean(0, dtype=torch.float64)
            self._sum = torch.zeros_like(self._centre)
            self._squares = self._sum[:, :, None] * self._sum[:, None]
        self._count += len(inputs)
        for part in inputs.split(CHUNK):
            moved = (part.double() - self._centre).transpose(0, 1)  # [g, s, J]
            self._sum = self._sum + moved.sum(1)
            self._squares += gram(moved)

    def factor(self, ridge: float) -> None:
        """Prepare for fits with this rho."""
        off = self._sum / self._count
        held = self._squares - self._count * off[:, :, None] * off[:, None]
        typical = held.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
        held.diagonal(dim1=1, dim2=2).add_(ridge * typical[:, None])
        self._factor = torch.linalg.cholesky(held)

    def prepared(self, inputs: Tensor, missing: Tensor) -> _Prepared:
        """Return what of a target, less W0 x, matters, whatever rho is; all samples taken in are given once more."""
        mean, middle = missing.mean(0, dtype=torch.float64), self._centre + self._sum / self._count
        centre, middling, cross = middle.to(inputs.dtype), mean.to(inputs.dtype), torch.zeros_like(middle)[:, :, None]
        for part, wanted in zip(inputs.split(CHUNK), missing.split(CHUNK), strict=True):
            moved, left = (part - centre).transpose(0, 1), (wanted - middling).transpose(0, 1)
            cross = cross + moved.transpose(1, 2) @ left
        return _Prepared(cross, mean, middle)

    def solve(self, of: _Prepared) -> Fit:
        """Solve with the rho that was prepared for."""
        return of.fit(torch.cholesky_solve(of.right, self._factor).transpose(1, 2))


class _Dual:
    """n equations, for layers with more inputs than there are samples."""

    def __init__(self) -> None:
        self._inputs = torch.empty(0)
        self._moved = self._middle = self._system = self._factor = self._inputs

    def add(self, inputs: Tensor) -> None:
        """Take more samples in."""
        wide = inputs.double().transpose(0, 1)  # [g, n, J]
        self._inputs = torch.cat([self._inputs, wide], 1) if self._inputs.numel() else wide
        self._middle = self._inputs.mean(1)
        self._moved = self._inputs - self._middle[:, None]
        self._system = self._moved @ self._moved.transpose(1, 2)

    def factor(self, ridge: float) -> None:
        """Prepare for fits with this rho."""
        system = self._system.clone()
        typical = system.diagonal(dim1=1, dim2=2).sum(1) / self._moved.shape[2]
        system.diagonal(dim1=1, dim2=2).add_((ridge * typical).clamp_min(1e-30)[:, None])
        self._factor = torch.linalg.cholesky(system)

    def prepared(self, inputs: Tensor, missing: Tensor) -> _Prepared:
        """Return what of a target, less W0 x, matters, whatever rho is."""
        del inputs
        wide = missing.double()
        mean = wide.mean(0)
        return _Prepared((wide - mean).transpose(0, 1), mean, self._middle)

    def solve(self, of: _Prepared) -> Fit:
        """Solve with the rho that was prepared for."""
        return of.fit(torch.cholesky_solve(of.right, self._factor).transpose(1, 2) @ self._moved)
