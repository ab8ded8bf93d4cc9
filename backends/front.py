"""What the command line does with a model: as a whole if it can be traced, else region by region."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..compiler.capture import trace
from ..compiler.errors import CaptureError, OptionError, UntraceableError
from ..compiler.program import Program
from ..compiler.regions import find_regions
from ..passes.instruments import Instrument
from ..passes.pipeline import PassPipeline
from .calibration import Calibration
from .compile import Compiled, compile
from .inputs import ModelInput
from .progress import Progress
from .regional.calls import arguments, convention_of, random_images
from .regional.compile import CompiledRegions, compile_regions


def compile_model(
    model: ModelInput,
    pipeline: PassPipeline,
    *,
    emit: Sequence[str],
    verify: bool,
    seed: int,
    instruments: Sequence[Instrument],
    calibration: Callable[[], Calibration | None],
    progress: Progress,
) -> Compiled | CompiledRegions:
    """Compile a model of the command line.

    Args:
        model: What MODEL names.
        pipeline: Passes.
        emit: Backends that will be asked for.
        verify: Prove the result.
        seed: Of random inputs.
        instruments: What watches the passes.
        calibration: Opens the data for passes that calibrate.
        progress: Told what is being done.

    Raises:
        CompilerError: See :func:`.compile.compile` and :func:`.regional.compile.compile_regions`.
    """
    progress(f"tracing {model.class_name}")
    try:
        program = trace(model.module, model.example_inputs(), name=model.class_name)
    except UntraceableError as error:
        _explain(model, progress)
        if calibration() is not None:
            raise OptionError(
                "a model that is Python around networks is pruned without data", where="--data", hint="leave it out"
            ) from error
        try:
            return compile_regions(
                model, pipeline, emit=emit, verify=verify, seed=seed, instruments=instruments, progress=progress
            )
        except CaptureError as second:  # nothing of it: then what stopped the first attempt says more
            raise error from second
    return compile(
        program,
        pipeline=pipeline,
        verify=verify,
        seed=seed,
        instruments=instruments,
        progress=progress,
        source=model.spec,
        data=calibration(),
    )


def capture(model: ModelInput, seed: int, progress: Progress) -> Program:
    """Return the program of a model of the command line, or that of all its regions.

    Raises:
        CaptureError: Nothing of it can be traced.
    """
    progress(f"tracing {model.class_name}")
    try:
        return trace(model.module, model.example_inputs(), name=model.class_name)
    except UntraceableError as error:
        _explain(model, progress)
        images = random_images(model.shapes, seed)
        called = arguments(convention_of(model.module, images), images)
        try:
            return find_regions(model.module, *called).program
        except CaptureError as second:  # nothing of it: then what stopped the first attempt says more
            raise error from second


def _explain(model: ModelInput, progress: Progress) -> None:
    progress.log(
        f"secateur: {model.class_name} cannot be traced as a whole: its networks are, one by one, and the Python code "
        "around them stays as it is"
    )
