"""The command line: the only file that prints. Results go to stdout, everything else to stderr.

Exit 0: done. 1: a check failed, or secateur has a bug. 2: bad input, in one message.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .compiler.errors import ArtefactError, CompilerError, InternalError, OptionError, ProofError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from .backends.inputs import ModelInput
    from .passes.instruments import Instrument, TimePasses

FORMATS = ("text", "json", "dot", "graphml", "html", "svg")
LISTS = ("models", "passes", "criteria", "backends", "presets")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        code = _run(arguments)
        sys.stdout.flush()  # here, where a reader that has gone away is no accident
        return code
    except ProofError as error:
        return _complain(str(error), 1, debug)
    except CompilerError as error:
        return _complain(str(error), 2, debug)
    except InternalError as error:
        hint = "this is a bug of secateur: please report the command and what it says with --debug"
        return _complain(f"{error}\n  try: {hint}", 1, debug)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"\n  at: {error.filename}" if error.filename else ""
        return _complain(f"{error.strerror or error}{where}", 2, debug)
    except KeyboardInterrupt:
        return _complain("interrupted", 130, debug=False)


def _complain(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"secateur: {message}", file=sys.stderr)
    return code


def _run(argv: list[str]) -> int:
    parser = _parser()
    if not argv:
        parser.print_help()
        return 0
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(unknown[0], arguments)
    if getattr(arguments, "run", None) is None:
        raise OptionError("no command is given", hint="secateur --help")
    return int(arguments.run(arguments))


# -- the language


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are errors like any other."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise OptionError(message, hint=f"{self.prog} --help")


def _refuse(word: str, arguments: argparse.Namespace) -> NoReturn:
    """Complain about a word that belongs to no option."""
    parser: argparse.ArgumentParser = getattr(arguments, "parser", None) or _parser()
    if not word.startswith("-"):
        raise OptionError(f"unexpected argument '{word}'", hint=f"{parser.prog} --help")
    known = sorted(option for option in parser._option_string_actions if option.startswith("--"))
    near = get_close_matches(word.partition("=")[0], known, n=3, cutoff=0.5)
    raise OptionError(f"unknown option '{word}'", hint=" or ".join(near) if near else f"{parser.prog} --help")


def _parser() -> _Parser:
    parser = _Parser(
        prog="secateur",
        description="A pruning compiler for PyTorch vision models: traced, analysed, pruned, proven, emitted.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"secateur {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=f"{help_text}.", allow_abbrev=False)
        sub.set_defaults(run=run, parser=sub)
        sub.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        sub.add_argument("--quiet", action="store_true", help="no progress and no warnings on stderr")
        return sub

    _add_compile(command("compile", _compile, "Prune a model, prove the result, write it"))
    sub = command("inspect", _inspect, "Show which channels are coupled, and which must stay")
    _add_model(sub)
    sub.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    sub.add_argument("-o", "--output", metavar="FILE", type=Path, help="write there instead of to stdout")
    sub = command("explain", _explain, "Say why layers are coupled, or why a layer stays as it is")
    _add_model(sub, layers=True)
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")
    sub = command("verify", _verify, "Prove an artefact again against its original")
    sub.add_argument("directory", metavar="DIR", type=Path)
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")
    sub = command("list", _list, "List what there is")
    sub.add_argument("what", choices=LISTS, metavar="|".join(LISTS))
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def _add_model(sub: argparse.ArgumentParser, *, layers: bool = False) -> None:
    sub.add_argument("model", metavar="MODEL", help="torchvision name, example, module.path:callable, or artefact DIR")
    if layers:
        sub.add_argument("layer", metavar="LAYER")
        sub.add_argument("other", metavar="LAYER", nargs="?")
    sub.add_argument("--weights", metavar="none|default|NAME|FILE", help="default: an example's own, else random")
    sub.add_argument("--input", metavar="1x3x224x224", action="append", default=[], help="shape; once per input")
    sub.add_argument("--seed", type=int, default=0, help="of random weights and of the proof's inputs")


def _add_compile(sub: argparse.ArgumentParser) -> None:
    _add_model(sub)
    sub.add_argument("--pipeline", metavar="TEXT|@PRESET", help="default: prune{macs=0.5}")
    sub.add_argument("--emit", metavar="LIST", default="python", help="python,pt2 (default: python)")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout: the report")
    sub.add_argument("--force", action="store_true", help="replace an artefact that stands at DIR")
    sub.add_argument("--no-verify", action="store_true", help="skip the proof")
    sub.add_argument("--print-ir-after-all", action="store_true", help="print the program after each pass, on stderr")
    sub.add_argument("--dump-dir", metavar="D", type=Path, help="write the program before and after each pass there")
    sub.add_argument("--time-passes", action="store_true", help="print how long each pass took, on stderr")
    sub.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="the artefact")


# -- commands


def _compile(arguments: argparse.Namespace) -> int:
    start = perf_counter()
    with _progress(arguments) as progress:
        progress("starting")
        from .backends import artefact, catalog
        from .backends.compile import DEFAULT_PIPELINE, compile
        from .passes.pipeline import PassPipeline

        text = DEFAULT_PIPELINE if arguments.pipeline is None else arguments.pipeline
        emit = catalog.check([name for name in arguments.emit.split(",") if name])
        pipeline = PassPipeline.parse(text)
        artefact.check_writable(arguments.output, arguments.force)
        instruments, timing = _instruments(arguments, progress)
        model = _model(arguments, progress)
        compiled = compile(
            model.module,
            model.example_inputs(),
            pipeline=pipeline,
            verify=not arguments.no_verify,
            seed=arguments.seed,
            name=model.class_name,
            instruments=instruments,
            progress=progress,
            source=model.spec,
        )
        compiled.save(arguments.output, emit=emit, force=arguments.force, progress=progress)
        report = artefact.read_report(arguments.output)
    for name, seconds in timing.seconds if arguments.time_passes else []:
        print(f"{seconds:8.3f} s  {name}", file=sys.stderr)
    if arguments.json:
        _print_json({"directory": str(arguments.output), **report})
        return 0
    from .backends import tables

    console = _console()
    ascii_only = not console.encoding.lower().startswith("utf")
    seconds = perf_counter() - start
    plan = compiled.plan.to_json()
    _show(console, tables.compilation(report, plan, str(arguments.output), seconds, ascii_only=ascii_only))
    return 0


def _instruments(arguments: argparse.Namespace, progress: _Progress) -> tuple[list[Instrument], TimePasses]:
    from .passes.instruments import DumpEach, PrintAfter, TimePasses

    timing = TimePasses()
    found: list[Instrument] = []
    if arguments.print_ir_after_all:
        found.append(PrintAfter(progress.log))
    if arguments.dump_dir is not None:
        found.append(DumpEach(arguments.dump_dir))
    return [*found, timing], timing


def _inspect(arguments: argparse.Namespace) -> int:
    if arguments.output is not None and not arguments.output.absolute().parent.is_dir():
        raise OptionError(
            "there is no such directory", where=str(arguments.output.absolute().parent), hint="make it first"
        )
    with _progress(arguments) as progress:
        progress("starting")
        from .compiler import render

        render.check_format(arguments.format)
        program, dependencies = _analysed(arguments, progress)
        text = render.render(dependencies, program, arguments.format)
    if arguments.output is None:
        print(text)
        return 0
    try:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ArtefactError(f"cannot write: {error.strerror}", where=str(arguments.output)) from error
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    with _progress(arguments) as progress:
        progress("starting")
        program, dependencies = _analysed(arguments, progress)
        explanation = dependencies.explain(program, arguments.layer, arguments.other)
    if arguments.json:
        _print_json(explanation.to_json())
    else:
        print(explanation)
    return 0


def _analysed(arguments: argparse.Namespace, progress: _Progress) -> tuple[Any, Any]:
    from .compiler.analysis import analyze
    from .compiler.capture import trace

    model = _model(arguments, progress)
    progress(f"tracing {model.class_name}")
    program = trace(model.module, model.example_inputs(), name=model.class_name)
    progress("analysing channel dependencies")
    return program, analyze(program)


def _verify(arguments: argparse.Namespace) -> int:
    with _progress(arguments) as progress:
        progress("starting")
        from .backends.verify import verify

        found = verify(arguments.directory, progress=progress)
    if arguments.json:
        _print_json({"directory": str(arguments.directory), "tensors": found.tensors, **found.to_json()})
        return 0
    from .backends import tables

    _show(_console(), tables.verification(str(arguments.directory), found.tensors, found.to_json()))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    rows = _rows(arguments.what)
    if arguments.json:
        _print_json({arguments.what: dict(rows)})
        return 0
    if arguments.what == "models":
        print("\n".join(f"{name}{f'  ({meaning})' if meaning != 'torchvision' else ''}" for name, meaning in rows))
        return 0
    width = max((len(name) for name, _ in rows), default=0)
    print("\n".join(f"{name:<{width}}  {meaning}" for name, meaning in rows) or f"there are no {arguments.what} yet")
    return 0


def _rows(what: str) -> list[tuple[str, str]]:
    """Return names and what they are, without importing torch."""
    if what == "models":
        from .compiler.sources import list_models

        kinds = {"examples": "example with weights and data"}
        return [(name, kinds.get(kind, kind)) for kind, models in list_models().items() for name in models]
    if what == "criteria":
        from .passes.prune.criteria import CRITERIA

        return [(name, meaning) for name, (_, meaning) in CRITERIA.items()]
    if what == "backends":
        from .backends.catalog import BACKENDS

        return [(name, f"{entry.file}: {entry.summary}") for name, entry in BACKENDS.items()]
    from .passes.catalog import PASSES, PRESETS

    if what == "presets":
        return [(f"@{name}", text) for name, text in PRESETS.items()]
    return [(name, entry.summary) for name, entry in PASSES.items()]


def _model(arguments: argparse.Namespace, progress: _Progress) -> ModelInput:
    from .backends import inputs

    progress(f"loading {arguments.model}")
    model = inputs.load(arguments.model, weights=arguments.weights, shapes=arguments.input, seed=arguments.seed)
    if model.random and arguments.weights is None:
        progress.log(
            "secateur: the weights are random (give --weights default or a file): costs are right, outputs are not"
        )
    return model


# -- talking


class _Progress:
    """Says on stderr what is going on: a spinner on a terminal, else a line for each step."""

    def __init__(self, console: Console | None, *, quiet: bool) -> None:
        self._quiet = quiet
        self._status = console.status("") if console is not None and not quiet else None
        if self._status is not None:
            self._status.start()

    def __call__(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)
        elif not self._quiet and text != "starting":
            print(f"secateur: {text}", file=sys.stderr)

    def log(self, text: str) -> None:
        """Print a message that stays."""
        if self._quiet:
            return
        if self._status is not None:
            self._status.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr)

    def stop(self) -> None:
        """Take the spinner away."""
        if self._status is not None:
            self._status.stop()


@contextmanager
def _progress(arguments: argparse.Namespace) -> Generator[_Progress]:
    console: Console | None = None
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
    progress = _Progress(console, quiet=arguments.quiet)
    try:
        yield progress
    finally:
        progress.stop()


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)


def _show(console: Console, renderable: RenderableType) -> None:
    with console.capture() as captured:
        console.print(renderable)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=1))
