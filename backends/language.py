"""What the command line understands: commands, options, and complaints about words that are neither. Prints nothing.

Imports no torch, so that ``--help`` comes at once.
"""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Final, NoReturn

from .. import __version__
from ..compiler.errors import OptionError
from . import language_train

FORMATS: Final = ("text", "json", "dot", "graphml", "html", "svg")
LISTS: Final = ("models", "passes", "criteria", "methods", "experiments", "backends", "presets")
CALIBRATION_IMAGES: Final = 512


class _Parser(ArgumentParser):
    """argparse whose complaints are errors like any other."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise OptionError(message, hint=f"{self.prog} --help")


def parse(argv: Sequence[str]) -> Namespace:
    """Read a command line; ``command`` of the result says which command it is.

    Raises:
        OptionError: A word is unknown, missing or malformed.
    """
    arguments, unknown = parser().parse_known_args(list(argv))
    if unknown:
        _refuse(unknown[0], arguments)
    if getattr(arguments, "command", None) is None:
        raise OptionError("no command is given", hint="secateur --help")
    return arguments


def _refuse(word: str, arguments: Namespace) -> NoReturn:
    """Complain about a word that belongs to no option."""
    used: ArgumentParser = getattr(arguments, "parser", None) or parser()
    known = sorted(option for option in used._option_string_actions if option.startswith("--"))
    if not word.startswith("-"):
        pipeline = "--pipeline" in known and ("{" in word or word.startswith("@"))
        raise OptionError(
            f"unexpected argument '{word}'", hint=f"--pipeline '{word}'" if pipeline else f"{used.prog} --help"
        )
    name = word.partition("=")[0]
    if len(name) == len("-p"):
        near = [option for option in known if option.startswith(f"-{name}")]
    else:
        near = get_close_matches(name, known, n=3, cutoff=0.5)
    raise OptionError(f"unknown option '{word}'", hint=" or ".join(near) if near else f"{used.prog} --help")


def parser() -> ArgumentParser:
    """Return the parser of all commands."""
    whole = _Parser(
        prog="secateur",
        description="A pruning compiler for PyTorch vision models: traced, analysed, pruned, proven, emitted.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"secateur {__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    for name, help_text, add in (
        ("compile", "Prune a model, prove the result, write it", _add_compile),
        ("inspect", "Show which channels are coupled, and which must stay", _add_inspect),
        ("explain", "Say why layers are coupled, or why a layer stays as it is", _add_explain),
        ("verify", "Prove an artefact again against its original", _add_verify),
        ("bench", "Time artefacts against their original, or models against one another", _add_bench),
        ("evaluate", "Measure top-1 and top-5 accuracy", _add_evaluate),
        ("sensitivity", "Measure how much each group of channels matters, narrowed alone", _add_sensitivity),
        ("scores", "Show how a criterion ranks the channels of every group", _add_scores),
        ("compare", "Compare criteria, scopes and pipelines on one model and data", _add_compare),
        ("train", "Train, fine-tune, prune softly or slim a network", _add_train),
        ("experiment", "Repeat an experiment of a paper, stage by stage", _add_experiment),
        ("list", "List what there is", _add_list),
    ):
        sub = commands.add_parser(name, help=help_text, description=f"{help_text}.", allow_abbrev=False)
        sub.set_defaults(command=name, parser=sub)
        sub.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        sub.add_argument("--quiet", action="store_true", help="no progress and no warnings on stderr")
        add(sub)
    return whole


def _add_model(sub: ArgumentParser) -> None:
    sub.add_argument("model", metavar="MODEL", help="name (see list models), module.path:callable, or artefact DIR")


def _add_source(sub: ArgumentParser) -> None:
    sub.add_argument("--weights", metavar="none|default|NAME|FILE", help="default: an example's own, else random")
    sub.add_argument("--input", metavar="1x3x224x224", action="append", default=[], help="shape; once per input")
    sub.add_argument("--seed", type=int, default=0, help="of random weights, of the proof's inputs, of samples of data")


def _add_data(sub: ArgumentParser, *, required: bool, help_text: str) -> None:
    sub.add_argument("--data", metavar="DIR", required=required, help=help_text)
    sub.add_argument(
        "--preprocess", metavar="TEXT", help="resize=256,crop=224,mean=...,std=... (default: the weights' own)"
    )


def _add_json(sub: ArgumentParser, what: str = "") -> None:
    sub.add_argument("--json", action="store_true", help=f"one JSON object on stdout{what}")


def _add_compile(sub: ArgumentParser) -> None:
    _add_model(sub)
    _add_source(sub)
    sub.add_argument("--pipeline", metavar="TEXT|@PRESET", help="default: prune{macs=0.5}")
    _add_data(sub, required=False, help_text="images to calibrate on: class folders, a plain folder, or an example")
    sub.add_argument(
        "--images",
        metavar="N",
        type=_positive,
        default=CALIBRATION_IMAGES,
        help=f"how many images to calibrate on (default: {CALIBRATION_IMAGES})",
    )
    sub.add_argument("--emit", metavar="LIST", default="python", help="python,pt2,onnx,... (default: python)")
    _add_json(sub, ": the report")
    sub.add_argument("--force", action="store_true", help="replace an artefact that stands at DIR")
    sub.add_argument("--no-verify", action="store_true", help="skip the proof")
    sub.add_argument("--print-ir-after-all", action="store_true", help="print the program after each pass, on stderr")
    sub.add_argument("--dump-dir", metavar="D", type=Path, help="write the program before and after each pass there")
    sub.add_argument("--time-passes", action="store_true", help="print how long each pass took, on stderr")
    sub.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="the artefact")


def _add_cells(sub: ArgumentParser) -> None:
    sub.add_argument(
        "--cells",
        choices=("shrink", "drop"),
        default="shrink",
        help="what becomes of attention heads and groups: they shrink alike (default), or whole ones go",
    )


def _add_inspect(sub: ArgumentParser) -> None:
    _add_model(sub)
    _add_source(sub)
    _add_cells(sub)
    sub.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    sub.add_argument("-o", "--output", metavar="FILE", type=Path, help="write there instead of to stdout")


def _add_explain(sub: ArgumentParser) -> None:
    _add_model(sub)
    sub.add_argument("layer", metavar="LAYER")
    sub.add_argument("other", metavar="LAYER", nargs="?")
    _add_source(sub)
    _add_cells(sub)
    _add_json(sub)


def _add_verify(sub: ArgumentParser) -> None:
    sub.add_argument("directory", metavar="DIR", type=Path)
    _add_json(sub)


def _add_bench(sub: ArgumentParser) -> None:
    sub.add_argument("model", metavar="DIR|MODEL", nargs="+", help="artefacts of one original, or models")
    _add_source(sub)
    sub.add_argument(
        "--backend", metavar="LIST", type=_names, default=["torch"], help="torch,onnx,... (default: torch)"
    )
    sub.add_argument("--threads", metavar="LIST", type=_numbers, default=[1], help="1,2 (default: 1)")
    sub.add_argument("--batch", metavar="LIST", type=_numbers, default=[1], help="1,8 (default: 1)")
    sub.add_argument("--repeats", metavar="N", type=_positive, default=30, help="rounds at least (default: 30)")
    sub.add_argument(
        "--profile", action="store_true", help="time operations of int8 and float32 side by side, not only if slower"
    )
    _add_json(sub)


def _add_evaluate(sub: ArgumentParser) -> None:
    _add_model(sub)
    _add_source(sub)
    _add_data(sub, required=True, help_text="images in class folders, or an example")
    sub.add_argument("--images", metavar="N", type=_positive, help="so many only, classes in balance (default: all)")
    sub.add_argument("--backend", metavar="NAME", default="torch", help="engine to run on (default: torch)")
    sub.add_argument("--threads", metavar="N", type=_positive, default=2, help="default: 2")
    sub.add_argument("--batch", metavar="N", type=_positive, default=64, help="images at a time (default: 64)")
    _add_json(sub)


def _add_sensitivity(sub: ArgumentParser) -> None:
    _add_study(sub)
    sub.add_argument(
        "--images", metavar="N", type=_positive, default=CALIBRATION_IMAGES, help=f"default: {CALIBRATION_IMAGES}"
    )
    sub.add_argument("--criterion", metavar="NAME", default="l2", help="which channels go first (default: l2)")
    sub.add_argument("--ratios", metavar="LIST", type=_fractions, help="removed (default: 0.1,0.25,0.5,0.75)")
    sub.add_argument(
        "--retrain", metavar="EPOCHS", type=_positive, help="train each network so long before it is measured"
    )
    sub.add_argument("--lr", metavar="X", type=float, default=0.001, help="of --retrain (default: 0.001)")
    sub.add_argument("-o", "--output", metavar="FILE.csv", type=Path, required=True, help="resumed if it is there")


def _add_compare(sub: ArgumentParser) -> None:
    _add_study(sub)
    sub.add_argument("--images", metavar="N", type=_positive, help="to measure on (default: all)")
    sub.add_argument("--calibration", metavar="DIR", help="images for what needs data (default: those of --data)")
    sub.add_argument("--criteria", metavar="LIST", type=_names, default=[], help="default: l2,fpgm,taylor")
    sub.add_argument(
        "--scopes", metavar="LIST", type=_names, default=["uniform", "global"], help="default: uniform,global"
    )
    sub.add_argument("--macs", metavar="LIST", type=_fractions, default=[0.7, 0.5], help="kept (default: 0.7,0.5)")
    sub.add_argument("--pipeline", metavar="TEXT", action="append", default=[], help="another candidate; repeatable")
    sub.add_argument("-o", "--output", metavar="FILE.csv", type=Path, help="the table as CSV; resumed if it is there")


def _add_scores(sub: ArgumentParser) -> None:
    _add_model(sub)
    _add_source(sub)
    _add_data(sub, required=False, help_text="images, for criteria that need some")
    sub.add_argument(
        "--images", metavar="N", type=_positive, default=CALIBRATION_IMAGES, help=f"default: {CALIBRATION_IMAGES}"
    )
    sub.add_argument("--criterion", metavar="NAME", default="l1", help="default: l1")
    sub.add_argument("--plot", metavar="FILE.svg", type=Path, help="draw the scores there")
    sub.add_argument("-o", "--output", metavar="FILE.csv", type=Path, help="a row per channel")
    _add_json(sub)


def _add_study(sub: ArgumentParser) -> None:
    """Add what sensitivity and compare have in common."""
    _add_model(sub)
    _add_source(sub)
    _add_data(sub, required=True, help_text="images: class folders, a plain folder (no labels), or an example")
    sub.add_argument("--no-labels", action="store_true", help="compare with the dense model's answers")
    sub.add_argument("--behind", metavar="TEXT", default="", help="passes behind each prune, such as reestimate-bn")
    sub.add_argument("--threads", metavar="N", type=_positive, default=2, help="default: 2")
    sub.add_argument("--plot", metavar="FILE.svg", type=Path, help="draw the results there")
    _add_json(sub)


def _add_train(sub: ArgumentParser) -> None:
    _add_model(sub)
    _add_source(sub)
    _add_data(sub, required=True, help_text="class folders, train/ and test/ with these, CIFAR's files, or an example")
    language_train.add_train(sub, _positive)
    _add_json(sub, ": the report")


def _add_experiment(sub: ArgumentParser) -> None:
    _add_data(sub, required=True, help_text="as for train")
    language_train.add_experiment(sub, _positive)
    _add_json(sub, ": the results")


def _add_list(sub: ArgumentParser) -> None:
    sub.add_argument("what", choices=LISTS, metavar="|".join(LISTS))
    _add_json(sub)


def _reader(function: Callable[[str], object], expected: str) -> Callable[[str], object]:
    def read(text: str) -> object:
        try:
            return function(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {expected}, found '{text}'") from None

    return read


def _whole(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _fraction(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise ValueError(text)
    return number


_fractions: Final = _reader(
    lambda text: [_fraction(part) for part in text.split(",")], "numbers between 0 and 1 with commas between"
)
_positive: Final = _reader(_whole, "a whole number from 1 up")
_numbers: Final = _reader(lambda text: [_whole(part) for part in text.split(",")], "whole numbers with commas between")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]
