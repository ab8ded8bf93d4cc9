"""What the benchmarks share: the header of every record, random model states, tables, and where results go.

Importing this file imports neither torch nor torchvision, so that a process that only starts others stays small.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""
RESULTS = ROOT / "benchmarks" / "results"
GIB = 1 << 30
CIFAR_PREFIX = "cifar_"
DETECTORS = tuple("fasterrcnn maskrcnn keypointrcnn retinanet ssd fcos".split())
"""Prefixes of torchvision models that are Python around networks."""
Json = dict[str, Any]


# -- the header


def header(threads: int, *extra_packages: str) -> Json:
    """Return what a reader needs to judge a record: the command, the machine, the versions, the commit."""
    known = versions(*extra_packages)
    return {"command": command(), **provenance(), "machine": machine(), "versions": known, "torch_threads": threads}


def provenance() -> Json:
    """Return date and commit."""
    return {"date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"), "commit": commit()}


def command() -> str:
    """Return the command line that is running, without paths of this machine."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(portable, sys.argv[1:])])


def commit() -> str:
    """Return the short commit, marked if files other than results differ from it.

    A copy of a checkout without its history is told by the variable COMMIT.
    """
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]
    try:
        revision = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + (" with uncommitted changes" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def machine() -> Json:
    """Describe the machine in general terms."""
    return {
        "cpu": _first_match(Path("/proc/cpuinfo"), r"model name\s*:\s*(.+)") or platform.processor() or "unknown",
        "cores": os.cpu_count() or 0,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "os": _first_match(Path("/etc/os-release"), r'PRETTY_NAME="(.+)"') or platform.system(),
        "arch": platform.machine(),
    } | ({"accelerator": accelerator()} if accelerator() else {})


def accelerator() -> str:
    """Return the name of the accelerator, if the machine has one that torch can use."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def _first_match(path: Path, pattern: str) -> str:
    try:
        found = re.search(pattern, path.read_text(encoding="utf-8"))
    except OSError:
        return ""
    return found[1].strip() if found else ""


def versions(*extra_packages: str) -> dict[str, str]:
    """Return the versions of what was measured, from the packages' metadata."""
    found = {"python": platform.python_version()}
    for name in ("secateur", "torch", "torchvision", "numpy", *extra_packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe(head: Mapping[str, Any]) -> list[str]:
    """Return a header as lines of Markdown."""
    on, known = head["machine"], head["versions"]
    return [
        f"- command: `{head['command']}`",
        f"- date: {head['date']}, commit {head['commit']}",
        f"- machine: {on['cpu']}, {on['cores']} cores, {on['memory_gib']} GiB memory, {on['os']}, {on['arch']}"
        + (f", {on['accelerator']}" if "accelerator" in on else ""),
        "- versions: " + ", ".join(f"{name} {version}" for name, version in known.items()),
        f"- torch threads: {head['torch_threads']}",
    ]


def portable(text: str) -> str:
    """Remove what is particular to this machine from a text: where things are installed."""
    for path, stands_for in (
        (str(ROOT), "."),
        (sys.prefix, "ENV"),
        (sys.base_prefix, "PYTHON"),
        (tempfile.gettempdir(), "TMP"),
        (str(Path.home()), "~"),
    ):
        text = re.sub(re.escape(path) + r"(?=[/\s\"':]|$)", stands_for, text)
    return re.sub(r"(?<![\w.~])/(?:[\w.+-]+/)+(?=[\w.+-]+)", "", text)


# -- tables and files


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> list[str]:
    """Return a Markdown table, the first ``left`` columns aligned to the left and the others to the right."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(column), 3, *(len(line[i]) for line in lines)) for i, column in enumerate(columns)]

    def layout(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = ("-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths))
    return [layout(columns), f"| {' | '.join(rule)} |", *map(layout, lines)]


def write_results(folder: Path, name: str, data: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Write ``name.json`` and ``name.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\nwritten: {name}.json and {name}.md in {portable(str(folder))}")


def percent(fraction: float | None, digits: int = 1) -> str:
    """Return a fraction as a percentage."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f}"


def artefact_size(folder: Path) -> Json:
    """Return how long an artefact's code is, and how large its weights are."""
    return {
        "lines": (folder / "model.py").read_text(encoding="utf-8").count("\n"),
        "weights_bytes": (folder / "model.safetensors").stat().st_size,
    }


# -- processes


def resident() -> Json:
    """Return current and peak resident memory of this process in bytes."""
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"now": pages * os.sysconf("SC_PAGE_SIZE"), "peak": peak}


def single_threaded() -> dict[str, str]:
    """Return an environment in which no numerical library starts a second thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def fit_slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent b of values ~ a * sizes ** b, by least squares on logarithms."""
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


# -- models


CIFAR_INPUT = (1, 3, 32, 32)


def cifar_files(data: Path) -> dict[str, Path]:
    """Return model name -> file, for every CIFAR ResNet of which the data folder holds trained weights."""
    found = sorted(path for pattern in ("resnet*.th", "resnet*.pt") for path in (data / "cifar-resnets").glob(pattern))
    return {CIFAR_PREFIX + re.sub(r"-[0-9a-f]+$|_cifar", "", path.stem): path for path in found}


def cifar_resnet(file: Path) -> nn.Module:
    """Build the CIFAR ResNet that a file of weights belongs to, with these, in eval mode."""
    from secateur.compiler import sources

    depth = int(re.sub(r"\D.*", "", file.name.removeprefix("resnet")))
    return sources.resolve(f"cifar-resnet{depth}", weights=str(file)).module


def build(name: str, seed: int = 0) -> nn.Module:
    """Build a torchvision model in eval mode, with a random state that has no symmetry left (see :func:`randomise`)."""
    import torch

    from secateur.compiler import vision

    vision.import_torchvision()
    torch.manual_seed(seed)
    return randomise(vision.build_model(name), seed).eval()


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw weights that keep a signal alive, and draw what initialisation leaves constant, in place.

    With biases of zero, scales of one, ConvNeXt's layer scales of 1e-6 or classifiers drawn with a deviation of 0.01,
    many a mistake in slicing would not show.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    bounds = {
        "running_mean": (-0.2, 0.2),
        "running_var": (0.5, 1.5),
        "bias": (-0.2, 0.2),
        "weight": (0.5, 1.5),
        "layer_scale": (0.2, 0.8),
    }
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            leaf = name.rpartition(".")[2]
            if leaf == "weight" and tensor.ndim > 1:  # of a convolution or linear layer
                tensor.normal_(0, math.sqrt(2 * len(tensor) / tensor.numel()), generator=generator)
            elif leaf in bounds:
                tensor.uniform_(*bounds[leaf], generator=generator)
    return model


def settle(model: nn.Module, *shapes: Sequence[int], seed: int = 0) -> nn.Module:
    """Set batch norms' statistics near those of random inputs, in place, so that depth does not kill the signal.

    They are random still: means are off by up to a fifth of a deviation, variances by up to a half.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momentum = [m.momentum for m in norms]
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the average over all batches seen, of which there is one
    with torch.no_grad():
        if norms:
            model(*(torch.randn(4, *shape[1:], generator=generator) for shape in shapes))
        for norm, before in zip(norms, momentum, strict=True):
            norm.momentum = before
            mean, var = norm.running_mean, norm.running_var
            if mean is not None and var is not None:
                mean += var.sqrt() * torch.empty_like(mean).uniform_(-0.2, 0.2, generator=generator)
                var *= torch.empty_like(var).uniform_(0.5, 1.5, generator=generator)
    return model.eval()
