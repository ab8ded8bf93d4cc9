"""torch.compile on the CPU, weights frozen; and AOTInductor packages, which hold the compiled library.

Integers are spelled with torch's ``quantized_decomposed`` operations, which the compiler matches together with the
convolution, linear or pooling around them and gives to oneDNN's int8 kernels. A torch without these operations gets the
arithmetic itself, and computes in float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor, fx, nn, profiler

from ...compiler import functional
from ...compiler.errors import CompilerError
from ...compiler.program import Program
from .agreement import flatten, measure, random_inputs
from .base import PROFILED_CALLS, Emission, Engine, Unsupported, first_line, quiet, torch_threads
from .lower import Site, evaluation_copy, lower
from .op_times import CONVOLUTION, ELEMENTWISE, LINEAR, POOL, ROUNDING, OpTime, kind_of

_DECOMPOSED: Final = "torch.ao.quantization.fx._decomposed"
"""The module that registers the operations; private, and announced to move."""


class Inductor:
    """The engine ``inductor``."""

    name = "inductor"
    names_layers = False

    @property
    def integers(self) -> bool:
        """Tell whether this torch finds integers in a graph: from 2.14 on, the patterns for that are torchao's."""
        with quiet():
            found = importlib.import_module("torch._inductor.fx_passes.quantization")
        return hasattr(found, "_register_quantization_weight_pack_pass")

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Return nothing: what cannot be compiled shows only when it is tried."""
        del program
        return []

    def emit(self, program: Program, path: Path) -> Emission:
        """Write an AOTInductor package (``.pt2``) for the batch size of the example inputs."""
        check_compiler()
        module = lower(program, dialect())
        inputs = tuple(random_inputs(program))
        with quiet(), torch.no_grad(), _settings(threads=0):
            try:
                exported = torch.export.export(module, inputs)
                inductor: Any = torch._inductor
                inductor.aoti_compile_and_package(exported, package_path=str(path))
            except Exception as error:
                raise CompilerError(
                    f"AOTInductor cannot compile the model: {first_line(error)}",
                    hint="leave aoti out of what is emitted",
                ) from error
        found = measure(program, self.load(path, threads=1), evaluation_copy(program))
        size = program.inputs[0].shape[0] if program.inputs and program.inputs[0].shape else 0
        return Emission((f"{path.name} takes batches of {size} only, and runs on processors like this one",), found)

    def build(self, program: Program, *, threads: int) -> Engine:
        """Compile a program; each new input shape is compiled when it is first seen."""
        check_compiler()
        return _Compiled(lower(program, dialect()), threads)

    def profile(self, program: Program, *, threads: int, batch: int | None = None) -> list[OpTime]:
        """Time kernels by torch's profiler; see :class:`.base.Profiler`. What is fused goes by the kernel's name."""
        check_compiler()
        engine = _Compiled(lower(program, dialect()), threads, marked=True)
        inputs = random_inputs(program, batch)
        engine(*inputs)
        calls: list[list[Any]] = []
        for _ in range(PROFILED_CALLS):
            with quiet(), profiler.profile(activities=[profiler.ProfilerActivity.CPU]) as found:
                engine(*inputs)
            calls.append(list(_kernels(found.events() or [])))
        lengths = [len(call) for call in calls]
        calls = [call for call in calls if len(call) == max(lengths, key=lengths.count)]
        return [
            OpTime(
                same[0].name,
                kind_of_kernel(same[0].name),
                median(e.cpu_time_total for e in same) / 1e3,
                precision_of_kernel(same[0].name),
            )
            for same in zip(*calls, strict=True)
        ]

    def load(self, path: Path, *, threads: int) -> Engine:
        """Load an AOTInductor package."""
        try:
            with quiet():
                inductor: Any = torch._inductor
                package = inductor.aoti_load_package(str(path))
        except Exception as error:
            raise CompilerError(f"AOTInductor cannot load the file: {first_line(error)}", where=path.name) from error
        return _Package(package, threads)


def check_compiler() -> None:
    """Raise if there is no C++ compiler, which inductor's CPU code needs.

    Raises:
        CompilerError: There is none.
    """
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:
        raise CompilerError(
            "torch.compile needs a C++ compiler and finds none", hint="install g++ or clang++, or set CXX to one"
        ) from error


@contextmanager
def _settings(threads: int, *, marked: bool = False) -> Generator[None]:
    """Inductor's settings while it compiles.

    Args:
        threads: 0 leaves the number to whoever runs the code.
        marked: Let the profiler see the kernels that inductor writes.
    """
    from torch._inductor import config

    # Threads are a setting, and so part of the key under which compiled code is cached: the code names their number.
    more: dict[str, Any] = {"cpp.threads": threads} if threads else {"cpp.dynamic_threads": True}
    more |= {"cpp.enable_kernel_profile": True} if marked else {}
    with config.patch(freezing=True, compile_threads=1, **more):
        yield


class _Compiled:
    """One compilation per input shape, so that sizes are constants to the compiler."""

    def __init__(self, module: nn.Module, threads: int, *, marked: bool = False) -> None:
        self.module, self.threads, self.marked = module, threads, marked
        self.compiled: dict[tuple[tuple[int, ...], ...], Any] = {}

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        with torch_threads(self.threads), torch.no_grad():
            run = self.compiled.get(shapes)
            try:
                if run is None:
                    run = self.compiled[shapes] = self._compile(*inputs)
                return flatten(run(*inputs))
            except Exception as error:
                raise CompilerError(f"torch.compile cannot take the model: {first_line(error)}") from error

    def _compile(self, *inputs: Tensor) -> Any:
        # A copy of the code for each shape: dynamo gives up on code that it has seen with many.
        module: Any = self.module
        fresh = fx.GraphModule(module, module.graph).eval()
        run = torch.compile(fresh, dynamic=False, fullgraph=True)
        with quiet(), _settings(self.threads, marked=self.marked):
            run(*inputs)
        return run


def _kernels(events: Iterable[Any]) -> Iterator[Any]:
    """Yield what does the work, in order: library calls and fused kernels, and nothing that they call in turn."""
    for event in sorted(events, key=lambda e: e.time_range.start):
        above = event.cpu_parent
        while above is not None and not _is_kernel(above.name):
            above = above.cpu_parent
        if _is_kernel(event.name) and above is None:
            yield event


def _is_kernel(name: str) -> bool:
    return "cpp_fused" in name or name.partition("::")[0] in ("mkldnn", "onednn", "mkl", "aten", "quantized")


def kind_of_kernel(name: str) -> str:
    """Return the kind of a kernel, by its name."""
    if "conv" in name and "fused" not in name:
        return CONVOLUTION
    if "linear" in name and "fused" not in name:
        return LINEAR
    if "pool" in name or "mean" in name:
        return POOL
    words = name.partition("cpp_fused_")[2].replace("dequantize_per_tensor", "").replace("quantize_per_tensor", "")
    if "cpp_fused" in name and not any(part for part in words.split("_") if part and not part.isdigit()):
        return ROUNDING
    return ELEMENTWISE if "cpp_fused" in name else kind_of(name.partition("::")[2])


def precision_of_kernel(name: str) -> str:
    """Return what a kernel reads: integers are named in what it does."""
    return "int8" if "qconv" in name or "qlinear" in name or "quantize" in name else "float32"


class _Package:
    def __init__(self, package: Any, threads: int) -> None:
        self.package, self.threads = package, threads

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        with torch_threads(self.threads), torch.no_grad():
            try:
                return flatten(self.package(*inputs))
            except Exception as error:
                raise CompilerError(f"AOTInductor cannot run the model: {first_line(error)}") from error


def dialect() -> DecomposedDialect | PlainDialect:
    """Return the words that this torch's compiler knows."""
    try:
        with quiet():
            importlib.import_module(_DECOMPOSED)
        ops: Any = torch.ops.quantized_decomposed
        return DecomposedDialect(
            ops.quantize_per_tensor.default, ops.dequantize_per_tensor.default, ops.dequantize_per_channel.default
        )
    except (ImportError, AttributeError):
        return PlainDialect()


class PlainDialect:
    """The arithmetic itself: real numbers that happen to be integers."""

    def quantize(self, site: Site, x: fx.Node, scale: float, zero_point: int, dtype: torch.dtype) -> fx.Node:
        """See :func:`functional.quantize`."""
        return site.call(functional.quantize, x, scale, zero_point, dtype)

    def dequantize(self, site: Site, q: fx.Node, scale: float, zero_point: int, dtype: torch.dtype) -> fx.Node:
        """See :func:`functional.dequantize`."""
        del dtype
        return site.call(functional.dequantize, q, scale, zero_point)

    def weight(self, site: Site, path: str, layer: nn.Module) -> fx.Node:
        """See :func:`functional.dequantize_channels`."""
        del layer
        return site.call(functional.dequantize_channels, site.read(f"{path}.weight"), site.read(f"{path}.weight_scale"))

    def bias(self, site: Site, path: str, layer: nn.Module, input_scale: float | None) -> fx.Node:
        """The real bias: oneDNN rounds it by itself."""
        del layer, input_scale
        return site.read(f"{path}.bias")

    def number(self, site: Site, value: float) -> fx.Node | None:
        """Leave the literal as it is."""
        del site, value
        return None

    def global_average_pool(self, site: Site, x: fx.Node) -> fx.Node | None:
        """Leave the call as it is."""
        del site, x
        return None


class DecomposedDialect(PlainDialect):
    """``quantized_decomposed``, in the forms that inductor's x86 patterns are written for."""

    def __init__(self, quantize: Any, dequantize: Any, dequantize_channels: Any) -> None:
        self._quantize, self._dequantize, self._channels = quantize, dequantize, dequantize_channels

    def quantize(self, site: Site, x: fx.Node, scale: float, zero_point: int, dtype: torch.dtype) -> fx.Node:
        """``quantize_per_tensor(x, scale, zero_point, min, max, dtype)``."""
        limits = torch.iinfo(dtype)
        return site.call(self._quantize, x, scale, zero_point, limits.min, limits.max, dtype)

    def dequantize(self, site: Site, q: fx.Node, scale: float, zero_point: int, dtype: torch.dtype) -> fx.Node:
        """``dequantize_per_tensor(q, scale, zero_point, min, max, dtype)``."""
        limits = torch.iinfo(dtype)
        return site.call(self._dequantize, q, scale, zero_point, limits.min, limits.max, dtype)

    def weight(self, site: Site, path: str, layer: nn.Module) -> fx.Node:
        """``dequantize_per_channel(weight, scales, zero_points, 0, -128, 127, int8)``."""
        scale = layer.get_buffer("weight_scale")
        zeros = site.constant(f"{path}.weight_zero_point", torch.zeros(len(scale), dtype=torch.int64))
        stored = site.read(f"{path}.weight"), site.read(f"{path}.weight_scale")
        return site.call(self._channels, *stored, zeros, 0, -128, 127, torch.int8)
