"""``report.json``: what a compilation did, in numbers and words. Keys are part of the artefact's format."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import nn

from ..compiler import examples, sources
from ..compiler.cost import LayerCost, layer_costs, measure
from ..compiler.program import Program, is_persistent
from ..passes.pipeline import PipelineResult
from . import weights_file
from .checks import Checked, summary

METADATA = {"format": "pt"}
"""In the header of model.safetensors, where other readers look for it."""


def build(
    original: Program,
    compact: Program,
    result: PipelineResult,
    *,
    pipeline: str,
    checked: Sequence[Checked] | None,
    seed: int,
    source: Mapping[str, Any] | None,
    accuracy: Mapping[str, Any] | None,
    data: Mapping[str, Any] | None,
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """Return the content of ``report.json``."""
    before, after = costs(original), costs(compact)
    return {
        "format": 1,
        "name": compact.name,
        "source": dict(source) if source is not None else None,
        "inputs": [
            {"name": i.name, "shape": list(i.shape), "dtype": str(i.dtype).removeprefix("torch.")}
            for i in original.inputs
        ],
        "pipeline": pipeline,
        "seed": seed,
        "data": dict(data) if data is not None else None,
        "before": before,
        "after": after,
        "kept": {name: after[name] / before[name] if before[name] else 1.0 for name in ("params", "macs", "bytes")},
        "accuracy": dict(accuracy) if accuracy is not None else None,
        "verification": summary(checked) if checked is not None else None,
        "layers": layers(original, compact),
        "passes": [
            {"pass": step.text, "changed": step.changed, "stats": dict(step.stats), "record": dict(step.record)}
            for step in result.steps
        ],
        "remarks": [
            {"kind": r.kind.value, "pass": r.pass_name, "node": r.node, "reason": r.reason} for r in result.remarks
        ],
        "notes": list(original.notes),
        "timings": {stage: round(seconds, 3) for stage, seconds in timings.items()},
        "versions": versions(),
    }


def costs(program: Program) -> dict[str, int]:
    """Count a program: params, MACs per sample, 2 x MACs (what many call FLOPs), bytes of its weights file."""
    cost = measure(program)
    return {"params": cost.params, "macs": cost.macs, "two_macs": 2 * cost.macs, "bytes": weights_file_size(program)}


def layers(original: Program, compact: Program) -> list[dict[str, Any]]:
    """Return, layer by layer, the channels, parameters and MACs before and after (``None`` if it is gone)."""
    now = _by_layer(layer_costs(compact))
    return [
        {"layer": name, "kind": cost["kind"], "before": _numbers(cost), "after": _numbers(now.get(name))}
        for name, cost in _by_layer(layer_costs(original)).items()
    ]


def _by_layer(found: Iterable[LayerCost]) -> dict[str, dict[str, Any]]:
    """One entry per layer; the MACs of several calls add up."""
    by_name: dict[str, dict[str, Any]] = {}
    for cost in found:
        if cost.layer in by_name:
            by_name[cost.layer]["macs"] += cost.macs
        else:
            by_name[cost.layer] = {
                "kind": cost.kind,
                "inputs": cost.inputs,
                "outputs": cost.outputs,
                "params": cost.params,
                "macs": cost.macs,
            }
    return by_name


def _numbers(cost: Mapping[str, Any] | None) -> dict[str, int] | None:
    return {key: value for key, value in cost.items() if key != "kind"} if cost is not None else None


def weights_file_size(program: Program) -> int:
    """Return how many bytes ``model.safetensors`` of a program has, without making it."""
    return weights_file.size(_stored(program), METADATA)


def _stored(program: Program) -> Iterable[tuple[str, torch.Tensor]]:
    """The tensors that the weights file holds: see ``source.emit.emitted_state``."""
    read = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    for name, tensor in program.tensors():
        if name in read or isinstance(tensor, nn.Parameter) or is_persistent(program.root, name):
            yield name, tensor


def accuracy(source: Mapping[str, Any] | None, before: nn.Module, after: nn.Module) -> dict[str, Any] | None:
    """Return top-1 accuracy in percent before and after on an embedded example's test images; ``None`` without data."""
    name = example_of(source)
    if name is None:
        return None
    example = examples.load(name)
    data = (example.test_images, example.test_labels)
    return {
        "data": f"{name}, test images",
        "images": len(example.test_images),
        "before": examples.accuracy(before, *data),
        "after": examples.accuracy(after, *data),
    }


def example_of(source: Mapping[str, Any] | None) -> str | None:
    """Return the embedded example that a model comes from, over any number of earlier compilations."""
    source = sources.root(source)
    return str(source["model"]) if source is not None and source.get("kind") == "example" else None


def versions() -> dict[str, str]:
    """Return the versions of everything that took part."""
    found = {"secateur": _version("secateur"), "torch": torch.__version__}
    if "torchvision" in sys.modules:
        found["torchvision"] = _version("torchvision")
    return {**found, "numpy": _version("numpy"), "python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
