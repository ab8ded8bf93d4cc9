"""The table of what can be emitted. It imports no torch, so that the command line lists it at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from ..compiler.errors import OptionError


@dataclass(frozen=True)
class Entry:
    """A row of the table of backends."""

    file: str
    """What it adds to an artefact."""
    summary: str
    """One line for ``secateur list backends``."""
    engine: str = ""
    """The engine of ``ENGINES`` that writes it; empty for what ``Compiled.save`` writes itself."""


@dataclass(frozen=True)
class EngineEntry:
    """A row of the table of engines."""

    module: str
    """Under ``backends/engines``."""
    attribute: str
    """The class in it; made without arguments."""
    summary: str
    """One line for ``secateur list backends``."""
    extra: str = ""
    """The extra of the package that installs it; empty where torch is enough."""
    packages: tuple[str, ...] = ()
    """What has to be importable."""


BACKENDS: Final[dict[str, Entry]] = {
    "python": Entry("model.py", "readable, stand-alone PyTorch source; loads model.safetensors, needs only torch"),
    "pt2": Entry("model.pt2", "torch.export program, weights included"),
    "onnx": Entry("model.onnx", "ONNX, compared with torch when written; QDQ when quantized", "onnx"),
    "openvino": Entry("model.xml", "OpenVINO's own format, with model.bin beside it", "openvino"),
    "aoti": Entry("model.aoti.pt2", "AOTInductor package: compiled code for processors like this one", "inductor"),
}

_ONNX: Final = ("onnx", "onnxscript", "onnxruntime")

ENGINES: Final[dict[str, EngineEntry]] = {
    "torch": EngineEntry("torch_eager", "TorchEager", "torch, operator by operator; integers are simulated in float32"),
    "inductor": EngineEntry("inductor", "Inductor", "torch.compile with frozen weights; needs a C++ compiler"),
    "onnx": EngineEntry("onnx_runtime", "OnnxRuntime", "ONNX Runtime on the CPU", "onnx", _ONNX),
    "openvino": EngineEntry("openvino", "OpenVino", "OpenVINO on the CPU", "openvino", ("openvino", *_ONNX)),
}


def check(names: Iterable[str]) -> tuple[str, ...]:
    """Return the backends named, each once, in the order of the table.

    Raises:
        OptionError: None is named, or one does not exist.
    """
    wanted = list(names)
    for name in wanted:
        if name not in BACKENDS:
            near = get_close_matches(name, BACKENDS, n=3, cutoff=0.5)
            raise OptionError(
                f"there is no backend '{name}'", where="--emit", hint=f"one of {', '.join(near or BACKENDS)}"
            )
    if not wanted:
        raise OptionError("no backend is named", where="--emit", hint=", ".join(BACKENDS))
    return tuple(name for name in BACKENDS if name in wanted)
