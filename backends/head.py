"""A new head: as many outputs as there are classes, from the layers that logits come from, drawn anew.

    logits [N, C] = W x + b   ->   logits [N, C'] = W' x + b'      W', b' as the layer's class draws them

Which layers those are is known from the channel analysis: whatever gives channels to an output, auxiliary heads
included. So a network for 1,000 classes is one for others, whatever its classifier is called, pruned or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..compiler.analysis import analyze
from ..compiler.capture import trace
from ..compiler.dependency import ChannelDependencies, ParamSlice, Role
from ..compiler.errors import OptionError
from ..compiler.program import Program
from ..compiler.shapes import is_tensor, shape_of
from .inputs import ModelInput

_WHERE: Final = "--new-head"
_HINT: Final = "make the network with as many outputs as there are classes: `package.module:function`"


def with_outputs(model: ModelInput, outputs: int, *, seed: int = 0) -> ModelInput:
    """Return a model with a new head, as its record says. Its module is changed in place.

    Args:
        model: A classifier.
        outputs: How many classes there are.
        seed: Of the new weights.

    Raises:
        OptionError: See :func:`renew`.
    """
    head = {"outputs": outputs, "inputs": [list(shape) for shape in model.shapes], "seed": seed}
    renew(model.module, head)
    return replace(model, spec={**model.spec, "head": head})


def renew(module: nn.Module, head: Mapping[str, Any]) -> tuple[str, ...]:
    """Give a network a new head, in place.

    Args:
        module: From images to logits [N, C].
        head: ``outputs``, C'; ``inputs``, shapes to trace the network with; ``seed`` of the new weights.

    Returns:
        The layers that were drawn anew.

    Raises:
        OptionError: Its outputs are not what layers of their own give.
    """
    inputs = [torch.zeros(tuple(shape)) for shape in head["inputs"]]
    outputs = int(head["outputs"])
    program = trace(module, inputs)
    deps = analyze(program)
    chosen = _classes(program, deps)
    uses = [use for use in deps.slices if chosen[deps.class_of[use.atoms]].any()]
    layers = _layers(module, deps, uses, chosen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(head["seed"]))
        for path, axes in layers.items():
            _draw(module.get_submodule(path), axes, outputs)
            for use in deps.attributes:
                if use.owner == path and chosen[deps.class_of[use.count.cells]].all():
                    setattr(module.get_submodule(path), use.attribute, outputs)
            reset: Any = module.get_submodule(path)
            reset.reset_parameters()
    _check(module, inputs, outputs)
    return tuple(layers)


def _classes(program: Program, deps: ChannelDependencies) -> npt.NDArray[np.bool_]:
    """Return which classes of channels the outputs are made of."""
    chosen = np.zeros(int(deps.class_of.max(initial=-1)) + 1, dtype=np.bool_)
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    for node in output.all_input_nodes:
        factor = deps.labels_of(node).factor_at(1) if is_tensor(node) and len(shape_of(node)) == 2 else None
        if factor is None or factor.axes != (1,):
            raise OptionError(f"the output {node.name} is not logits of layers", where=_WHERE, hint=_HINT)
        chosen[deps.class_of[factor.atoms]] = True
    return chosen


def _layers(
    module: nn.Module, deps: ChannelDependencies, uses: Sequence[ParamSlice], chosen: npt.NDArray[np.bool_]
) -> dict[str, dict[str, int]]:
    """Return the layers that the outputs come from, each with its tensors and their axes."""
    layers: dict[str, dict[str, int]] = {}
    for use in uses:
        path, _, leaf = use.name.rpartition(".")
        why = ""
        if use.role is Role.CONSUMES:
            why = "reads the outputs again"
        elif not chosen[deps.class_of[use.atoms]].all():
            why = "gives other channels as well"
        elif use.name in deps.shared or use.name in deps.shared.values():
            why = "shares its weights"
        elif not path or not callable(getattr(module.get_submodule(path), "reset_parameters", None)):
            why = "does not say how its weights are drawn"
        if why:
            raise OptionError(f"{use.name} {why}, so there is no new head for it", where=_WHERE, hint=_HINT)
        layers.setdefault(path, {})[leaf] = use.axis
    return layers


def _draw(layer: nn.Module, axes: Mapping[str, int], outputs: int) -> None:
    """Give a layer tensors of the new size."""
    for leaf, axis in axes.items():
        old: Tensor = getattr(layer, leaf)
        shape = [outputs if place == axis else size for place, size in enumerate(old.shape)]
        made = torch.zeros(shape, dtype=old.dtype, device=old.device)
        setattr(layer, leaf, nn.Parameter(made, old.requires_grad) if isinstance(old, nn.Parameter) else made)


def _check(module: nn.Module, inputs: Sequence[Tensor], outputs: int) -> None:
    """Run the network: its own code may have the number of outputs written down."""
    training = module.training
    try:
        with torch.no_grad():
            found = module.eval()(*inputs)
    except RuntimeError as error:
        why = f"its code does not run with {outputs} outputs: {str(error).splitlines()[0]}"
        raise OptionError(why, where=_WHERE, hint=_HINT) from error
    finally:
        module.train(training)
    if isinstance(found, Tensor) and found.shape[1] != outputs:
        raise OptionError(f"it still gives {found.shape[1]} outputs", where=_WHERE, hint=_HINT)
