"""The options of ``train`` and ``experiment``. Those that are a recipe's numbers come from its fields."""

from __future__ import annotations

import argparse
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, NoReturn, get_args, get_type_hints

from .training.recipe import PRECISIONS, Recipe

_HELP: Final = {
    "epochs": "how often all images are seen",
    "batch_size": "images per step, over all processes",
    "optimizer": "sgd, adam or adamw",
    "lr": "learning rate at its highest",
    "momentum": "of sgd; the first beta of adam",
    "nesterov": "look ahead",
    "weight_decay": "pulls weights to zero",
    "decay_norms": "whether weight decay is for scales, shifts and biases too",
    "schedule": "constant, step, multistep, exp, cosine or onecycle",
    "milestones": "of multistep: fractions of all epochs, or epochs: 0.5:0.75",
    "step_size": "of step: epochs",
    "gamma": "of step, multistep, exp: factor",
    "warmup": "epochs in which the rate rises",
    "label_smoothing": "share of the other classes in the targets",
    "clip": "largest norm of the gradients",
    "ema": "decay of averaged weights, such as 0.999",
    "precision": ", ".join(PRECISIONS),
    "channels_last": "memory layout: often faster",
    "cuda_graph": "replay the passes as graphs: faster for small networks on a GPU",
    "augment": "auto, none, shift-flip or resized-crop",
    "distill": "share of the teacher in the loss",
    "temperature": "of distillation",
    "keep": "last or best: whose weights the run gives",
}


def add_recipe(sub: ArgumentParser) -> None:
    """Add an option for every field of a recipe; what is not given is ``None``."""
    group = sub.add_argument_group("recipe")
    hints = get_type_hints(Recipe)
    for field in fields(Recipe):
        kind, default = hints[field.name], field.default
        flag, text = f"--{field.name.replace('_', '-')}", f"{_HELP[field.name]} (default: {_shown(default)})"
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif field.name == "milestones":
            group.add_argument(flag, metavar="A:B", type=_milestones, help=text)
        elif get_args(kind) and all(isinstance(choice, str) for choice in get_args(kind)):
            group.add_argument(flag, metavar="NAME", choices=get_args(kind), help=text)
        else:
            number = int if kind is int else str if kind is str else float
            group.add_argument(flag, metavar="NAME" if number is str else "N", type=number, help=text)


def recipe_of(arguments: Namespace, base: Recipe | None = None) -> Recipe:
    """Return the recipe that a command line asks for.

    Raises:
        OptionError: A number is out of range.
    """
    return Recipe.from_json((base or Recipe()).to_json() | changes_of(arguments))


def add_train(sub: ArgumentParser, positive: Callable[[str], object]) -> None:
    """Add what ``train`` takes besides model, weights and data."""
    sub.add_argument("--val", metavar="DIR", help="class folders to test on, where --data holds none")
    sub.add_argument("--images", metavar="N", type=positive, help="train on so many, classes in balance (default: all)")
    sub.add_argument(
        "--method", metavar="TEXT", default="", help="soft{rate=0.3}, slim{s=1e-4}, frozen; see `secateur list methods`"
    )
    sub.add_argument("--teacher", metavar="MODEL", help="for --distill; an artefact's original by default")
    sub.add_argument("--teacher-weights", metavar="NAME|FILE", help="the teacher's")
    sub.add_argument(
        "--new-head", action="store_true", help="as many outputs as the data has classes, from layers drawn anew"
    )
    sub.add_argument("--from-scratch", action="store_true", help="draw all weights anew first")
    sub.add_argument(
        "--same-compute", action="store_true", help="of a pruned artefact: more epochs, by what it lost in MACs"
    )
    add_recipe(sub)
    group = sub.add_argument_group("run")
    group.add_argument("--accelerator", metavar="NAME", default="auto", help="cpu, cuda, mps ... (default: the best)")
    group.add_argument("--devices", metavar="N", type=positive, default=1, help="processes on this machine")
    group.add_argument("--resume", action="store_true", help="continue an interrupted run to the same output")
    group.add_argument("--force", action="store_true", help="replace what stands at DIR, and an interrupted run")
    group.add_argument("--no-verify", action="store_true", help="skip the proof of the result")
    group.add_argument("--emit", metavar="LIST", default="python", help="python,pt2,onnx,... (default: python)")
    sub.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="the artefact")


def add_experiment(sub: ArgumentParser, positive: Callable[[str], object]) -> None:
    """Add what ``experiment`` takes besides data."""
    sub.add_argument("name", metavar="NAME", help="see `secateur list experiments`")
    sub.add_argument("--val", metavar="DIR", help="class folders to test on, where --data holds none")
    sub.add_argument("--weights", metavar="FILE", help="the network's: then the first stage is not trained")
    sub.add_argument("--images", metavar="N", type=positive, help="train on so many, classes in balance (default: all)")
    sub.add_argument("--scale", metavar="X", type=float, default=1.0, help="epochs are the paper's times this")
    sub.add_argument("--least-epochs", metavar="N", type=positive, default=1, help="of every stage, whatever the scale")
    sub.add_argument("--seed", type=int, default=0, help="of everything random")
    sub.add_argument("--accelerator", metavar="NAME", default="auto", help="cpu, cuda, mps ... (default: the best)")
    add_recipe(sub)
    sub.add_argument(
        "--later", metavar="OPTIONS", type=_later, default={}, help="of stages after the first: --later='--lr 0.01'"
    )
    sub.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="continued if it is there")


def changes_of(arguments: Namespace) -> dict[str, Any]:
    """Return the recipe's numbers that a command line gives."""
    given = {field.name: getattr(arguments, field.name) for field in fields(Recipe)}
    return {name: value for name, value in given.items() if value is not None}


def _later(text: str) -> dict[str, Any]:
    parser = _Strict(add_help=False)
    add_recipe(parser)
    return changes_of(parser.parse_args(shlex.split(text)))


class _Strict(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentTypeError(message)


def _milestones(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with colons between, found '{text}'") from None


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, tuple):
        return ":".join(f"{value:g}" for value in default)
    return (
        str(default).lower() if isinstance(default, bool) else f"{default:g}" if isinstance(default, float) else default
    )
