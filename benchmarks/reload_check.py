"""Run in a fresh process by coverage.py: load an emitted model where neither secateur nor torchvision can be imported.

    python -I reload_check.py DIR

DIR holds model.py, model.safetensors and io.pt (the inputs, and the outputs of the model that was emitted). Prints one
line of JSON. This file uses only the standard library and torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

BLOCKED = ("secateur", "torchvision")


class _Wall:
    """A meta path finder that lets nothing of the blocked packages through."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{fullname} is blocked here", name=fullname)
        return None


def _is_blocked(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return True
    return False


def main() -> None:
    sys.meta_path.insert(0, _Wall())
    folder = Path(sys.argv[1])
    import torch

    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    io = torch.load(folder / "io.pt", weights_only=True)
    model = module.load().to(io["inputs"][0].dtype).eval()
    with torch.no_grad():
        outputs = model(*io["inputs"])
    error = scale = 0.0
    if not isinstance(outputs, dict):
        outputs = {str(i): t for i, t in enumerate(outputs if isinstance(outputs, tuple | list) else [outputs])}
    assert sorted(outputs) == sorted(io["outputs"]), "the outputs have other names"
    for name, expected in io["outputs"].items():
        assert outputs[name].shape == expected.shape, "the outputs have other shapes"
        error = max(error, float((outputs[name] - expected).abs().max()))
        scale = max(scale, float(expected.abs().max()))
    loaded = sorted(name for name in sys.modules if name.partition(".")[0] in BLOCKED)
    third = sorted({n.partition(".")[0] for n in sys.modules} & {"safetensors", "numpy", "scipy", "networkx"})
    found = {
        "error": error,
        "scale": scale,
        "blocked": [name for name in BLOCKED if _is_blocked(name)],
        "loaded": loaded,
        "third_party_loaded": third,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
