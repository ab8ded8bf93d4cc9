"""Run in a fresh process by coverage.py: load an emitted model where neither secateur nor torchvision can be imported.

    python -I reload_check.py DIR
    python -I reload_check.py DIR --list OPERATORS

With --list the model is called with a list of images, and may import torchvision, whose operators, where they do not
load, are those that the file OPERATORS defines. DIR holds model.py, model.safetensors and io.pt (the inputs, and the
outputs of the model that was emitted). Prints one line of JSON. This file uses only the standard library and torch.
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
from typing import Any, cast

BLOCKED = ["secateur", "torchvision"]


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


def _import_torchvision(operators: Path) -> None:
    spec = importlib.util.spec_from_file_location("operators", operators)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        module.define()
        importlib.import_module("torchvision")
        module.take_over()


def _named(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return all tensors in dictionaries and lists, by their places."""
    if isinstance(value, dict):
        entries = [(str(key), entry) for key, entry in cast("dict[str, Any]", value).items()]
    elif isinstance(value, tuple | list):
        entries = [(str(i), entry) for i, entry in enumerate(cast("list[Any]", value))]
    else:
        return {prefix or ".0": value}
    return {name: tensor for key, entry in entries for name, tensor in _named(entry, f"{prefix}.{key}").items()}


def main() -> None:
    folder, as_list = Path(sys.argv[1]), "--list" in sys.argv
    if as_list:
        BLOCKED.remove("torchvision")
    sys.meta_path.insert(0, _Wall())
    import torch

    torch.set_num_threads(1)
    if as_list:
        _import_torchvision(Path(sys.argv[-1]))
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    io = torch.load(folder / "io.pt", weights_only=True)
    model = module.load().to(io["inputs"][0].dtype).eval()
    with torch.no_grad():
        outputs = _named(model(io["inputs"]) if as_list else model(*io["inputs"]))
    error = scale = 0.0
    wanted = _named(io["outputs"])
    assert sorted(outputs) == sorted(wanted), "the outputs have other names"
    for name, expected in wanted.items():
        assert outputs[name].shape == expected.shape, "the outputs have other shapes"
        if not expected.numel():
            continue
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
