"""One model of int8_accuracy.py, in a process of its own: quantized by secateur and by its peers, top-1 of each.

    python benchmarks/int8_accuracy_worker.py MODEL --images DIR [--data DIR]

DIR holds train/ and test/ with a folder per class. Prints lines of JSON: {"stage": ...} as each stage begins, and at
the end {"record": ...}.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from common import CIFAR_INPUT, Json, cifar_files, cifar_resnet
from deploy_worker import CLEAN, announce, quantize_static, run_pipeline

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from secateur.backends.engines.base import Engine
    from secateur.compiler.program import Program

    Hits = npt.NDArray[np.bool_]

DEFAULT, MINMAX, NNCF = "secateur", "secateur minmax", "NNCF"
PIPELINES: Final = {DEFAULT: "quantize{weight-bits=8}", MINMAX: "quantize{weight-bits=8 observer=minmax}"}
STATIC: Final = "quantize_static"
ENGINES: Final = ("torch", "onnx", "openvino")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CALIBRATION_BATCH: Final = 64


class Model:
    """One network, real and folded, with the images to measure it on."""

    def __init__(self, name: str, images: Path, data: Path, batch: int, folder: Path) -> None:
        """Build the model and read the test images; ``folder`` takes what quantizers write."""
        import torch

        from secateur.compiler.capture import trace

        self.name, self.images, self.folder = name, images, folder
        announce("reading images")
        self.test = list(self._open("test", True, None, 0, batch))
        announce("folding")
        original = trace(cifar_resnet(cifar_files(data)[name]), torch.zeros(CIFAR_INPUT))
        self.folded = run_pipeline(CLEAN, original)
        self.hits: dict[tuple[str, str, int], Hits] = {}
        """(method, engine, seed) -> which test images are classified correctly; of fp32 there is one seed."""
        self.seconds: dict[str, float] = {}

    def _open(self, split: str, labelled: bool, limit: int | None, seed: int, batch: int) -> Any:
        from secateur.compiler.data.images import open_images
        from secateur.compiler.data.preprocess import Preprocess

        how = Preprocess(mean=MEAN, std=STD)
        folder = str(self.images / split)
        return open_images(folder, preprocess=how, labelled=labelled, limit=limit, seed=seed, batch_size=batch)

    def run(self, engines: Sequence[str], static: Sequence[str], nncf: bool, seeds: Sequence[int], count: int) -> None:
        """Measure everything."""
        self._measure("fp32", "torch", 0, lambda: engine_of("torch", self.folded))
        for seed in seeds:
            data = [images for images, _ in self._open("train", False, count, seed, CALIBRATION_BATCH)]
            for method, pipeline in PIPELINES.items():
                announce(f"{method}, seed {seed}")
                program = run_pipeline(pipeline, self.folded, data)
                for engine in engines:
                    self._measure(method, engine, seed, lambda e=engine, p=program: engine_of(e, p))
            for how in static:
                method = f"{STATIC} {how}"
                self._measure(method, "onnx", seed, lambda h=how, d=data: self._static(h, d))
            if nncf:
                self._measure(NNCF, "openvino", seed, lambda d=data: self._nncf(d))

    def _measure(self, method: str, engine: str, seed: int, build: Callable[[], Engine]) -> None:
        import numpy as np

        announce(f"{method} in {engine}, seed {seed}")
        begin = time.perf_counter()
        run = build()
        found = [(run(images)[0].argmax(1) == labels).numpy() for images, labels in self.test]
        self.hits[method, engine, seed] = np.concatenate(found)
        self.seconds[f"{method}, {engine}"] = round(time.perf_counter() - begin, 1)

    def _real_file(self) -> Path:
        from secateur.backends.engines import onnx_export

        path = self.folder / "folded.onnx"
        if not path.exists():
            onnx_export.export(self.folded).save(path)
        return path

    def _static(self, method: str, data: Sequence[torch.Tensor]) -> Engine:
        from secateur.backends.engines.base import quiet
        from secateur.backends.engines.onnx_runtime import session_engine

        path = self.folder / "static.onnx"
        with quiet():
            quantize_static(self._real_file(), path, data, method)
        return session_engine(path, threads=1)

    def _nncf(self, data: Sequence[torch.Tensor]) -> Engine:
        """Quantize by nncf.quantize with its defaults: one image at a time, as its documentation calibrates."""
        from secateur.backends.engines import get
        from secateur.backends.engines.base import quiet

        path = self.folder / "nncf.xml"
        with quiet():
            openvino, nncf = importlib.import_module("openvino"), importlib.import_module("nncf")
            singles = [image[None].numpy() for batch in data for image in batch]
            model = openvino.Core().read_model(str(self._real_file()))
            quantized = nncf.quantize(model, nncf.Dataset(singles), subset_size=len(singles))
            openvino.save_model(quantized, str(path), compress_to_fp16=False)
        return get("openvino").load(path, threads=1)

    def record(self) -> Json:
        """Return accuracies in percent, and differences with their noise."""
        pooled = {(m, e) for m, e, _ in self.hits}
        fp32 = self._mean("fp32", "torch")
        rows = [
            {
                "method": method,
                "engine": engine,
                "top1": [100 * float(self.hits[k].mean()) for k in sorted(self.hits) if k[:2] == (method, engine)],
                "minus_fp32": difference(self._mean(method, engine), fp32),
                "seconds": self.seconds[f"{method}, {engine}"],
            }
            for method, engine in sorted(pooled)
        ]
        peers = [(m, e) for m, e in sorted(pooled) if m not in ("fp32", *PIPELINES) and (DEFAULT, e) in pooled]
        against = [
            {"peer": m, "engine": e, "secateur_minus_peer": difference(self._mean(DEFAULT, e), self._mean(m, e))}
            for m, e in peers
        ]
        return {"model": self.name, "images": len(fp32), "rows": rows, "against": against}

    def _mean(self, method: str, engine: str) -> npt.NDArray[np.float64]:
        """Return for every image in how many of the seeds it is classified correctly, as a fraction."""
        import numpy as np

        return np.mean([hits for (m, e, _), hits in self.hits.items() if (m, e) == (method, engine)], axis=0)


def difference(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> list[float]:
    """Return the difference of two accuracies, and its standard error over the images, in points.

    Paired: both classified the same images, so what they agree on is no noise.
    """
    import numpy as np

    d = 100 * (a - b)
    return [float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d)))]


def engine_of(name: str, program: Program) -> Engine:
    """Build an engine on one thread."""
    from secateur.backends.engines import get

    return get(name).build(program, threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Quantize one CIFAR ResNet in several ways and measure top-1.")
    parser.add_argument("model")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--engines", nargs="+", default=ENGINES)
    parser.add_argument(
        "--static", nargs="*", default=["MinMax", "Percentile"], help="calibration methods of quantize_static"
    )
    parser.add_argument("--nncf", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=512, help="calibration images")
    parser.add_argument("--batch", type=int, default=50, help="images at a time; more of them leave the caches")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    import logging

    import torch

    os.environ["NNCF_CI"] = "1"  # no telemetry
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = Model(options.model, options.images, options.data, options.batch, Path(folder))
        model.run(options.engines, options.static, options.nncf, range(options.seeds), options.count)
        record = {**model.record(), "wall_seconds": round(time.perf_counter() - begin, 1)}
    print(json.dumps({"record": record}), flush=True)


if __name__ == "__main__":
    main()
