"""The command line: the only file that prints. Results go to stdout, everything else to stderr.

Exit 0: done. 1: a check failed, or secateur has a bug. 2: bad input, in one message.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from .backends import language
from .backends.outputs import check_folders, write
from .backends.progress import Progress
from .compiler.errors import CompilerError, InternalError, ProofError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from .backends.calibration import Calibration
    from .backends.inputs import ModelInput
    from .passes.instruments import Instrument, TimePasses
    from .passes.pipeline import PassPipeline


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
    if not argv:
        language.parser().print_help()
        return 0
    arguments = language.parse(argv)
    return _COMMANDS[arguments.command](arguments)


# -- commands


def _compile(arguments: Namespace) -> int:
    start = perf_counter()
    with _progress(arguments) as progress:
        progress("starting")
        from .backends import artefact, catalog, engines
        from .backends.compile import DEFAULT_PIPELINE
        from .backends.front import compile_model
        from .passes.pipeline import PassPipeline

        text = DEFAULT_PIPELINE if arguments.pipeline is None else arguments.pipeline
        emit = catalog.check([name for name in arguments.emit.split(",") if name])
        for name in emit:
            if catalog.BACKENDS[name].engine:
                engines.get(catalog.BACKENDS[name].engine)  # complains now about what is not installed
        pipeline = PassPipeline.parse(text)
        artefact.check_writable(arguments.output, arguments.force)
        instruments, timing = _instruments(arguments, progress)
        model = _model(arguments, progress)
        compiled = compile_model(
            model,
            pipeline,
            emit=emit,
            verify=not arguments.no_verify,
            seed=arguments.seed,
            instruments=instruments,
            calibration=lambda: _calibration(arguments, model, pipeline, progress),
            progress=progress,
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


def _calibration(
    arguments: Namespace, model: ModelInput, pipeline: PassPipeline, progress: Progress
) -> Calibration | None:
    """Open what --data names, for the passes that calibrate."""
    from .backends import calibration

    if arguments.data is None:
        wanted = calibration.makes_do_with_noise(pipeline)
        if wanted:
            progress.log(
                f"secateur: {wanted} calibrates on random noise, since no --data are given: expect bad accuracy"
            )
        return None
    found = calibration.open_for(
        model, arguments.data, preprocess=arguments.preprocess, limit=arguments.images, seed=arguments.seed
    )
    progress(f"{found.spec['images']} images of {arguments.data}, {found.spec['preprocess']}")
    return found


def _instruments(arguments: Namespace, progress: Progress) -> tuple[list[Instrument], TimePasses]:
    from .passes.instruments import DumpEach, PrintAfter, TimePasses

    timing = TimePasses()
    found: list[Instrument] = []
    if arguments.print_ir_after_all:
        found.append(PrintAfter(progress.log))
    if arguments.dump_dir is not None:
        found.append(DumpEach(arguments.dump_dir))
    return [*found, timing], timing


def _inspect(arguments: Namespace) -> int:
    check_folders(arguments.output)
    with _progress(arguments) as progress:
        progress("starting")
        from .compiler import render

        render.check_format(arguments.format)
        program, dependencies = _analysed(arguments, progress)
        text = render.render(dependencies, program, arguments.format)
    if arguments.output is None:
        print(text)
        return 0
    write(arguments.output, text + "\n")
    return 0


def _explain(arguments: Namespace) -> int:
    with _progress(arguments) as progress:
        progress("starting")
        program, dependencies = _analysed(arguments, progress)
        explanation = dependencies.explain(program, arguments.layer, arguments.other)
    if arguments.json:
        _print_json(explanation.to_json())
    else:
        print(explanation)
    return 0


def _analysed(arguments: Namespace, progress: Progress) -> tuple[Any, Any]:
    from .backends.front import capture
    from .compiler.analysis import analyze

    program = capture(_model(arguments, progress), arguments.seed, progress)
    progress("analysing channel dependencies")
    return program, analyze(program, whole_cells=arguments.cells == "drop")


def _verify(arguments: Namespace) -> int:
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


def _evaluate(arguments: Namespace) -> int:
    with _progress(arguments) as progress:
        progress("starting")
        from .backends import calibration, engines
        from .backends.evaluate import evaluate
        from .compiler.capture import trace

        engine = engines.get(arguments.backend)
        model = _model(arguments, progress)
        images, preprocess = calibration.open_labelled(
            model,
            arguments.data,
            preprocess=arguments.preprocess,
            limit=arguments.images,
            seed=arguments.seed,
            batch_size=arguments.batch,
        )
        program = trace(model.module, model.example_inputs(), name=model.class_name)
        progress(f"building for {arguments.backend}")
        run = engine.build(program, threads=arguments.threads)
        found = evaluate(run, images, progress=progress)
    if arguments.json:
        _print_json(
            {
                "model": arguments.model,
                "backend": arguments.backend,
                "data": arguments.data,
                "preprocess": preprocess,
                **asdict(found),
            }
        )
        return 0
    print(f"{arguments.model} on {arguments.backend}: {found}")
    print(f"  {preprocess}")
    if found.note:
        print(f"  {found.note}")
    return 0


def _bench(arguments: Namespace) -> int:
    with _progress(arguments) as progress:
        progress("starting")
        from .backends import bench_candidates
        from .backends.bench import bench
        from .backends.bench_table import table

        candidates = bench_candidates.load(
            arguments.model, weights=arguments.weights, shapes=arguments.input, seed=arguments.seed, progress=progress
        )
        report = bench(
            candidates,
            backends=arguments.backend,
            threads=arguments.threads,
            batch_sizes=arguments.batch,
            repeats=arguments.repeats,
            seed=arguments.seed,
            profile=arguments.profile,
            progress=progress,
        )
    if arguments.json:
        _print_json(report.to_json())
    else:
        _show(_console(), table(report))
    return 0


def _study(arguments: Namespace) -> int:
    check_folders(arguments.output, arguments.plot)
    with _progress(arguments) as progress:
        progress("starting")
        from .backends import studies

        found = studies.run(arguments, _model(arguments, progress), progress)
        write(arguments.plot, found.plot)
    if arguments.json:
        _print_json(found.content)
    else:
        _show(_console(), found.table)
    return 0


def _train(arguments: Namespace) -> int:
    with _progress(arguments) as progress:
        progress("starting")
        from .backends.training import command

        report = command.run(arguments, progress)
    if report is None:  # on all processes but the first
        return 0
    if arguments.json:
        _print_json({"directory": str(arguments.output), **report})
        return 0
    from .backends.training.table import table

    _show(_console(), table(report, str(arguments.output)))
    return 0


def _experiment(arguments: Namespace) -> int:
    with _progress(arguments) as progress:
        progress("starting")
        from .backends.training.command import experiment
        from .backends.training.table import stages

        results = experiment(arguments, progress)
    if arguments.json:
        _print_json(results)
    else:
        _show(_console(), stages(results, str(arguments.output)))
    return 0


def _list(arguments: Namespace) -> int:
    from .backends import listing

    if arguments.json:
        _print_json({arguments.what: dict(listing.rows(arguments.what))})
    else:
        print(listing.text(arguments.what))
    return 0


def _model(arguments: Namespace, progress: Progress) -> ModelInput:
    from .backends import inputs

    progress(f"loading {arguments.model}")
    model = inputs.load(arguments.model, weights=arguments.weights, shapes=arguments.input, seed=arguments.seed)
    if model.random and arguments.weights is None:
        progress.log(
            "secateur: the weights are random (give --weights default or a file): costs are right, outputs are not"
        )
    return model


_COMMANDS: Final[dict[str, Callable[[Namespace], int]]] = {
    "compile": _compile,
    "inspect": _inspect,
    "explain": _explain,
    "verify": _verify,
    "bench": _bench,
    "evaluate": _evaluate,
    "sensitivity": _study,
    "compare": _study,
    "scores": _study,
    "train": _train,
    "experiment": _experiment,
    "list": _list,
}


# -- talking


@contextmanager
def _progress(arguments: Namespace) -> Generator[Progress]:
    console: Console | None = None
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))  # of a launcher's processes, the first one talks
    quiet = arguments.quiet or rank.strip("0") != ""
    progress = Progress(lambda text: print(text, file=sys.stderr), console, quiet=quiet)
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
