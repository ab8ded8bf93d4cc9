"""Whether the model's own code does with pruned layers what the program of all regions does, region by region."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from ...compiler.errors import CompilerError
from ...compiler.precision import float64_throughout
from ...compiler.program import InputSpec, Program
from ...compiler.proof import in_float64
from ...compiler.regions import Region, Regions
from .graph_code import GraphCode, run_graph

_TOLERANCE: Final = 1e-9


def check_regions(model: nn.Module, regions: Regions, compact: Program, *, seed: int = 0) -> float:
    """Compare what every region's own forward computes with the program, on random inputs, in float64.

    Args:
        model: Holds the layers of the program.
        regions: Of the original.
        compact: What a pipeline made of their program.
        seed: Of the inputs.

    Returns:
        The largest relative difference.

    Raises:
        CompilerError: A region computes something else; the message names it.
    """
    return settle(model, regions, compact, seed, own_code=True)[0]


def settle(
    model: nn.Module, regions: Regions, compact: Program, seed: int, own_code: bool
) -> tuple[float, tuple[GraphCode, ...]]:
    """Check all regions, and let those that fail run their graphs; returns the largest difference, and these."""
    values = _values(regions, compact, seed)
    calls = Counter(region.path for region in regions.regions)
    rewritten: list[GraphCode] = []
    worst = 0.0
    for region in regions.regions:
        try:
            difference = _difference(model, region, values)
        except CompilerError:
            if own_code or calls[region.path] > 1:
                raise
            rewritten.append(run_graph(model, region, regions.program, compact))
            difference = _difference(model, region, values)
        worst = max(worst, difference)
    return worst, tuple(rewritten)


def _values(regions: Regions, compact: Program, seed: int) -> dict[str, Tensor]:
    """Run the program on random inputs, in float64; returns what goes in and out of regions."""
    wide = in_float64(compact)
    names = {name for region in regions.regions for name in (*region.inputs, *region.outputs)}
    with torch.no_grad(), float64_throughout():
        recorder = _Recorder(wide.module.eval(), names)
        try:
            recorder.run(*_random(wide.inputs, 2, seed))
        except RuntimeError:  # not all of it follows the batch
            recorder.run(*_random(wide.inputs, None, seed))
    return recorder.values


def _difference(model: nn.Module, region: Region, values: dict[str, Tensor]) -> float:
    missing = [name for name in (*region.inputs, *region.outputs) if name not in values]
    if missing:
        raise _refused(region, f"the pipeline replaced {missing[0]}")
    module = copy.deepcopy(model.get_submodule(region.path)).to("cpu").double().eval()
    try:
        with torch.no_grad(), float64_throughout():
            found = region.run(module, [values[name].clone() for name in region.inputs])
    except Exception as error:
        raise _refused(region, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error
    worst = 0.0
    for mine, name in zip(found, region.outputs, strict=True):
        theirs = values[name]
        if mine.shape != theirs.shape:
            raise _refused(region, f"it gives {list(mine.shape)} where {list(theirs.shape)} is right")
        if mine.numel():
            scale = float(theirs.abs().max()) or 1.0
            error = float((mine - theirs).abs().max()) / scale
            worst = max(worst, error if error == error else float("inf"))
    if worst > _TOLERANCE:
        raise _refused(region, f"its result is off by {worst:.2g} of the largest number in it")
    return worst


def _refused(region: Region, why: str) -> CompilerError:
    exclude = f"{region.path}.*" if region.path else "*"
    return CompilerError(
        f"the code of {region.path or 'the model'} does not go along with the pruned layers: {why}",
        where=region.path or None,
        hint=f"it counts on widths, or channels move in it: prune{{macs=0.5 exclude={exclude}}}, without passes that "
        "change more than widths; or in Python prune_regions(..., own_code=False)",
    )


class _Recorder(fx.Interpreter):
    """Runs a program and keeps the values of some nodes as they are when they come about."""

    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self.names = names
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.names:
            self.values[n.name] = result.clone()
        return result


def _random(specs: Sequence[InputSpec], batch: int | None, seed: int) -> list[Tensor]:
    """Return random inputs; without a batch size, as many samples as there were."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for spec in specs:
        shape = (batch, *spec.shape[1:]) if spec.shape and batch is not None else spec.shape
        real = spec.dtype.is_floating_point
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64) if real else None
        found.append(numbers if numbers is not None else torch.randint(0, 2, shape, generator=generator).to(spec.dtype))
    return found
