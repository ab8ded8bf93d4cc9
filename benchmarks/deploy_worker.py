"""One model of deploy.py, in a process of its own: prune, quantize, and time it against torch, engine by engine.

    python benchmarks/deploy_worker.py MODEL --setting onnx:1 [--setting openvino:2]

Prints lines of JSON: {"stage": ...} as each stage begins, {"timing": ...} after each setting (an engine and a number of
threads), and {"network": ...}, what is true of the model whatever the setting.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from common import Json, build, portable, settle

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from secateur.backends.engines.base import Backend, Engine
    from secateur.compiler.program import Program

BASE: Final = "torch eager"
"""The model as it is, run by torch eagerly: takes part in every round of every setting."""
STATIC, PRUNED_STATIC = "quantize_static", "pruned quantize_static"
PAIRS: Final = (
    ("int8", "folded"),
    ("pruned int8", "pruned"),
    ("int8", STATIC),
    ("pruned int8", PRUNED_STATIC),
)
"""Whose times are compared round by round, besides everybody's with the base's."""
CLEAN: Final = "eliminate-identity,fold-constants,fold-bn"
QUANTIZE: Final = "quantize{observer=minmax weight-bits=8}"
CALIBRATION_BATCHES: Final = 8


@dataclass(frozen=True)
class Options:
    """How networks are made and timed."""

    macs: float
    round_to: int
    repeats: int
    min_seconds: float

    @property
    def prune(self) -> str:
        """Pipeline text."""
        return f"prune{{macs={self.macs:g} round-to={self.round_to}}}"


class Deployment:
    """One model: the programs of all candidates, and the files of the peers."""

    def __init__(self, name: str, options: Options, folder: Path) -> None:
        """Build, prune and quantize; ``folder`` takes the ONNX files."""
        import torch

        from secateur.compiler import vision
        from secateur.compiler.capture import trace

        self.name, self.options, self.folder = name, options, folder
        announce("building")
        model = build(name)
        shape = vision.input_shapes(name, model)[0]
        settle(model, shape)
        generator = torch.Generator().manual_seed(3)
        self.data = [torch.randn(shape, generator=generator) for _ in range(CALIBRATION_BATCHES)]
        original = trace(model, torch.zeros(shape))
        announce("pruning and quantizing")
        folded = run_pipeline(CLEAN, original)
        pruned = run_pipeline(f"{options.prune},{CLEAN}", original)
        self.programs: dict[str, Program] = {
            "original": original,
            "folded": folded,
            "int8": run_pipeline(QUANTIZE, folded, self.data),
            "pruned": pruned,
            "pruned int8": run_pipeline(QUANTIZE, pruned, self.data),
        }
        self.files: dict[str, Path] = {}

    def write_files(self) -> None:
        """Write model.onnx of every candidate, and let ONNX Runtime's own tool quantize the two real networks."""
        from secateur.backends.engines import onnx_export

        announce("writing ONNX files")
        for name, program in self.programs.items():
            self.files[name] = self.folder / f"{name}.onnx"
            onnx_export.export(program).save(self.files[name])
        announce("quantize_static")
        for name, source in ((STATIC, "folded"), (PRUNED_STATIC, "pruned")):
            self.files[name] = self.folder / f"{name}.onnx"
            quantize_static(self.files[source], self.files[name], self.data)

    def network(self) -> Json:
        """Return what is true of the model whatever the setting."""
        from secateur.compiler.cost import measure

        before, after = measure(self.programs["original"]), measure(self.programs["pruned"])
        integers = [name for name in self.files if name in ("int8", "pruned int8", STATIC, PRUNED_STATIC)]
        return {
            "model": self.name,
            "weights_bytes": 4 * before.params,
            "macs": before.macs,
            "macs_kept": after.macs / before.macs,
            "params_kept": after.params / before.params,
            "prune": self.options.prune,
            "file_bytes": {name: path.stat().st_size for name, path in self.files.items()},
            "float_ops": {name: self._float_ops(self.files[name]) for name in integers},
        }

    def _float_ops(self, path: Path) -> dict[str, int]:
        from secateur.backends.engines.onnx_runtime import session_engine

        optimized = path.with_suffix(".optimized")
        session_engine(path, threads=1, optimized=optimized)
        return float_ops(optimized)

    def time(self, engine: str, threads: int) -> Json:
        """Time all candidates of one setting, together with the base, in interleaved rounds."""
        from secateur.backends import engines
        from secateur.backends.engines.agreement import random_inputs
        from secateur.backends.engines.onnx_runtime import session_engine
        from secateur.backends.timing import warm_up
        from secateur.compiler.errors import CompilerError

        backend = engines.get(engine)
        built: dict[str, Engine] = {BASE: engines.get("torch").build(self.programs["original"], threads=threads)}
        refused: dict[str, str] = {}
        inputs = random_inputs(self.programs["original"], 1)
        names = [n for n in self.programs if not (engine == "torch" and n == "original")]
        for name in [*names, *([STATIC, PRUNED_STATIC] if engine == "onnx" else [])]:
            announce(f"{engine}, {threads}: building {name}")
            try:
                if name in self.programs:
                    made = build_engine(backend, self.programs[name], threads)
                else:
                    made = session_engine(self.files[name], threads=threads)
                warm_up(made, inputs)
            except CompilerError as error:
                refused[name] = portable(error.what)[:300]
            else:
                built[name] = made
        announce(f"{engine}, {threads}: timing")
        warm_up(built[BASE], inputs)
        before = processor_seconds()
        times = interleave(list(built.values()), inputs, self.options.repeats, self.options.min_seconds)
        busy, own, idle = (b - a for a, b in zip(before, processor_seconds(), strict=True))
        found = evaluate(list(built), times)
        announce(f"{engine}, {threads}: looking at int8 that is slower")
        return {
            "model": self.name,
            "engine": engine,
            "threads": threads,
            **found,
            "others_share": max(0.0, busy - own) / max(busy + idle, 1e-9),
            "refused": refused,
            "disagreement": self._disagreement(built, inputs),
            "blame": self._blame(backend, threads, found["paired"]) if engine != "torch" else {},
        }

    def _blame(self, backend: Any, threads: int, paired: Mapping[str, Sequence[float]]) -> dict[str, str]:
        """Say of int8 programs that are slower than float32 which operations are to blame."""
        from secateur.backends.profile import blame

        found: dict[str, str] = {}
        for int8, real in (("int8", "folded"), ("pruned int8", "pruned")):
            pair = f"{int8} : {real}"
            if pair in paired and paired[pair][0] > 1:
                before, after = (backend.profile(self.programs[name], threads=threads) for name in (real, int8))
                found[pair] = blame(before, after).sentence
        return found

    def _disagreement(self, built: Mapping[str, Engine], inputs: Sequence[torch.Tensor]) -> dict[str, float]:
        """Return how far each engine is from torch running the same program (peers: the one they started from)."""
        from secateur.backends import engines
        from secateur.backends.engines.agreement import compare

        same = {BASE: "original", STATIC: "folded", PRUNED_STATIC: "pruned"}
        found: dict[str, float] = {}
        for name, engine in built.items():
            reference = engines.get("torch").build(self.programs[same.get(name, name)], threads=1)
            found[name] = compare(engine(*inputs), reference(*inputs)).relative_error
        return found


def interleave(
    built: Sequence[Engine], inputs: Sequence[torch.Tensor], repeats: int, min_seconds: float
) -> npt.NDArray[np.float64]:
    """Run all engines in turn, round by round, in a new random order each time; return seconds, [rounds, engines].

    Random, because a candidate that always ran behind the same neighbour would always find its leftovers in the caches:
    differences of a few percent between candidates that are nearly equal are what this has to tell.
    """
    import gc

    import numpy as np

    generator = np.random.default_rng(0)
    times: list[list[float]] = []
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        while len(times) < repeats or time.perf_counter() - began < min_seconds:
            row = [0.0] * len(built)
            for i in generator.permutation(len(built)):
                start = time.perf_counter()
                built[i](*inputs)
                row[i] = time.perf_counter() - start
            times.append(row)
    finally:
        gc.enable()
    return np.array(times)


def processor_seconds() -> tuple[float, float, float]:
    """Return the processor's seconds so far: busy, for whomever; busy for this process; idle."""
    fields = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0].split()[1:9]
    user, nice, system, idle, waiting, irq, soft_irq, stolen = (int(f) / os.sysconf("SC_CLK_TCK") for f in fields)
    own = os.times()
    return user + nice + system + irq + soft_irq + stolen, own.user + own.system, idle + waiting


def evaluate(names: Sequence[str], times: npt.NDArray[np.float64]) -> Json:
    """Return medians, and quartiles of ratios that are taken within each round.

    Args:
        names: The candidates, the base first.
        times: Seconds, [rounds, candidates].
    """
    import numpy as np

    column = {name: times[:, i] for i, name in enumerate(names)}

    def quartiles(ratio: npt.NDArray[np.float64]) -> list[float]:
        return [float(q) for q in np.quantile(ratio, (0.25, 0.5, 0.75))]

    return {
        "rounds": len(times),
        "p50_ms": {name: 1e3 * float(np.median(t)) for name, t in column.items()},
        "p90_ms": {name: 1e3 * float(np.quantile(t, 0.9)) for name, t in column.items()},
        "speedup": {name: quartiles(column[names[0]] / t) for name, t in column.items() if name != names[0]},
        "paired": {f"{a} : {b}": quartiles(column[a] / column[b]) for a, b in PAIRS if a in column and b in column},
    }


def run_pipeline(text: str, program: Program, data: Iterable[torch.Tensor] | None = None) -> Program:
    """Run passes on a program."""
    from secateur.backends.compile import equip
    from secateur.passes.pipeline import PassPipeline

    return equip(PassPipeline.parse(text), data, lambda text: None).run(program).program


def build_engine(backend: Backend, program: Program, threads: int) -> Engine:
    """Build an engine.

    Raises:
        CompilerError: It cannot take the program.
    """
    from secateur.compiler.errors import CompilerError

    found = backend.unsupported(program)
    if found:
        raise CompilerError(f"{found[0].node}: {found[0].reason}")
    return backend.build(program, threads=threads)


def quantize_static(source: Path, target: Path, data: Iterable[torch.Tensor], method: str = "MinMax") -> None:
    """Quantize an ONNX file by ONNX Runtime's own tool, set as its documentation says for x86 with VNNI.

    Activations uint8, weights int8 per output channel, QDQ, after the preprocessing that the tool asks for.

    Args:
        source: The real network.
        target: Where the quantized one is written.
        data: Batches, [N, C, H, W].
        method: How ranges follow from calibration: MinMax, Percentile or Entropy.
    """
    import onnx

    tool: Any = importlib.import_module("onnxruntime.quantization")
    prepared = source.with_suffix(".prepared.onnx")
    importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process(str(source), str(prepared))
    name = onnx.load(str(source), load_external_data=False).graph.input[0].name

    class Reader(tool.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(data)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.numpy()}

    tool.quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=tool.QuantFormat.QDQ,
        per_channel=True,
        activation_type=tool.QuantType.QUInt8,
        weight_type=tool.QuantType.QInt8,
        calibrate_method=tool.CalibrationMethod[method],
    )
    prepared.unlink()


def float_ops(path: Path) -> dict[str, int]:
    """Count the operators of an ONNX graph, as ONNX Runtime runs it, that compute in float although it is quantized.

    An operator computes in integers if it is one of ONNX Runtime's own integer operators, or if what it reads is
    integers. Conversions count under their own names: QuantizeLinear, DequantizeLinear.
    """
    import onnx

    graph: Any = onnx.load(str(path)).graph
    integers = {t.name for t in graph.initializer if t.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)}
    found = Counter[str]()
    for node in graph.node:
        kind = str(node.op_type)
        own = kind.startswith(("QLinear", "QGemm", "QAttention")) or "Integer" in kind
        if kind == "QuantizeLinear" or own or (kind != "DequantizeLinear" and integers.intersection(node.input[:1])):
            integers.update(node.output)
        if (not own and not set(node.output) <= integers) or kind == "QuantizeLinear":
            found[kind] += 1
    return dict(found.most_common())


def announce(stage: str) -> None:
    print(json.dumps({"stage": stage}), flush=True)


def settings(texts: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Read ``ENGINE:THREADS``."""
    for text in texts:
        engine, _, threads = text.partition(":")
        yield engine, int(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune, quantize and time one model.")
    parser.add_argument("model")
    parser.add_argument("--setting", action="append", default=[], metavar="ENGINE:THREADS", help="more than once, too")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--round-to", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--min-seconds", type=float, default=1.0)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    import logging

    import torch

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    options = Options(given.macs, given.round_to, given.repeats, given.min_seconds)
    with tempfile.TemporaryDirectory() as folder:
        deployment = Deployment(given.model, options, Path(folder))
        deployment.write_files()
        print(json.dumps({"network": deployment.network()}), flush=True)
        for engine, threads in settings(given.setting):
            begin = time.perf_counter()
            timing = deployment.time(engine, threads)
            timing["seconds"] = round(time.perf_counter() - begin, 1)
            assert all(math.isfinite(value) for value in timing["p50_ms"].values())
            print(json.dumps({"timing": timing}), flush=True)


if __name__ == "__main__":
    main()
