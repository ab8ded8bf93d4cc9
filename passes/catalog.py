"""The tables of passes and presets, and the way from pipeline text to pass objects.

A pass is a row here, a file and a test file of the same name. Classes are imported when they are asked for, so that
listing the passes does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from ..compiler.errors import OptionError
from ..compiler.options import build_from, nearest, options_of
from ..compiler.spec import Option, PassSpec, PipelineSpec, parse
from .presets import PRESETS

if TYPE_CHECKING:
    from .base import Pass


@dataclass(frozen=True)
class Entry:
    """A row of the table of passes."""

    target: str
    """``module:Class``; a leading dot is relative to this folder."""
    summary: str
    """One line for ``secateur list passes``."""


PASSES: dict[str, Entry] = {
    "prune": Entry(".prune.prune:Prune", "remove the least important channels, within a budget"),
    "absorb": Entry(".compensate.absorb:Absorb", "after prune: move the mean of removed channels into biases"),
    "reconstruct": Entry(".compensate.reconstruct:Reconstruct", "after prune: refit layers by least squares, on data"),
    "reconstruct-blocks": Entry(
        ".compensate.reconstruct_blocks:ReconstructBlocks", "after reconstruct: refit the layers of a block together"
    ),
    "reestimate-bn": Entry(
        ".compensate.reestimate_bn:ReestimateBN", "after prune: measure batch-norm statistics again, on data"
    ),
    "repair-variance": Entry(
        ".compensate.repair_variance:RepairVariance", "after prune: give channels their mean and variance back, on data"
    ),
    "fold-bn": Entry(".fold_bn:FoldBN", "fold batch norms into the layers next to them, exactly"),
    "eliminate-dead-channels": Entry(
        ".eliminate_dead_channels:EliminateDeadChannels", "remove channels that are constant or unread, exactly"
    ),
    "equalize": Entry(".equalize:Equalize", "give the channels between two layers equal weight ranges, exactly"),
    "fold-constants": Entry(".fold_constants:FoldConstants", "compute once what depends on no input"),
    "eliminate-identity": Entry(".eliminate_identity:EliminateIdentity", "remove calls that give back their input"),
    "quantize": Entry(".quantize.quantize:Quantize", "quantize weights and activations to int8, after training"),
    "convert": Entry(".quantize.convert:Convert", "after quantization-aware training, make integers"),
    "eliminate-dead-code": Entry(".eliminate_dead_code:EliminateDeadCode", "remove what no output depends on"),
}


def get(name: str) -> type[Pass]:
    """Return the class of a pass.

    Raises:
        OptionError: There is no pass of that name.
    """
    if name not in PASSES:
        raise OptionError(f"there is no pass '{name}'", hint=nearest(name, PASSES))
    module, _, attribute = PASSES[name].target.partition(":")
    cls: type[Pass] = getattr(import_module(module, __package__), attribute)
    return cls


def build(pipeline: PipelineSpec) -> tuple[Pass, ...]:
    """Build the passes of a pipeline, presets expanded.

    Raises:
        OptionError: A pass, a preset or an option is unknown, or a value is malformed.
    """
    return tuple(build_from(get(spec.name), spec) for spec in expand(pipeline))


def expand(pipeline: PipelineSpec) -> PipelineSpec:
    """Replace the presets in a pipeline by what they stand for.

    An option given to a preset, as in ``@small{macs=0.7}``, is given to every pass in the preset that has such an
    option, in place of what the preset says.
    """
    elements: list[PassSpec] = []
    for spec in pipeline:
        elements.extend(_expanded_preset(spec) if spec.is_preset else [spec])
    return PipelineSpec(tuple(elements))


def _expanded_preset(spec: PassSpec) -> list[PassSpec]:
    name = spec.name.removeprefix("@")
    if name not in PRESETS:
        raise OptionError(f"there is no preset '{spec.name}'", hint=nearest(name, PRESETS))
    elements = list(parse(PRESETS[name]))
    if not spec.options:
        return elements
    keys = [{option.key for option in options_of(get(element.name))} for element in elements]
    for option in spec.options:
        if not any(option.key in known for known in keys):
            hint = nearest(option.key, set[str]().union(*keys))
            raise OptionError(
                f"no pass of preset '{spec.name}' has an option '{option.key}'", where=str(spec), hint=hint
            )
    return [
        _overridden(element, [option for option in spec.options if option.key in known])
        for element, known in zip(elements, keys, strict=True)
    ]


def _overridden(element: PassSpec, options: list[Option]) -> PassSpec:
    given = {option.key: option for option in (*element.options, *options)}
    return PassSpec(element.name, tuple(given.values()))
