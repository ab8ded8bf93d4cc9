"""What a user sees for bad input: each case once, as a command of its own.

    python benchmarks/bad_input.py

Each must exit with 2, say one thing on stderr, print nothing on stdout and leave nothing behind. Writes
results/bad_input.json and results/bad_input.md.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import RESULTS, describe, header, write_results
from PIL import Image
from safetensors.torch import save_file

LOOPS = """
import torch


class Loops(torch.nn.Module):
    def forward(self, x):
        while x.sum() > 0:
            x = x - 1
        return x


def untraceable():
    return Loops()
"""

QUANTIZE = ("--pipeline", "quantize")


@dataclass(frozen=True)
class Case:
    """One mistake."""

    what: str
    arguments: Sequence[str]
    file_limit: int | None = None
    """Bytes that a file may grow to: what a full disk does to the file being written."""
    command: str = "compile"
    without: str = ""
    """A package that cannot be imported."""


CASES = (
    Case("unknown model", ["resnet51"]),
    Case("unreadable weights", ["resnet18", "--weights", "broken.safetensors"]),
    Case("weights of another model", ["digits", "--weights", "other.safetensors"]),
    Case("a pickle that needs code execution", ["digits", "--weights", "evil.pth"]),
    Case("wrong input shape", ["digits", "--input", "1x3x8x8"]),
    Case("malformed input shape", ["digits", "--input", "1x1xx8"]),
    Case("bad pipeline text", ["digits", "--pipeline", "prune{macs=0.5"]),
    Case("unknown pass", ["digits", "--pipeline", "prun{macs=0.5}"]),
    Case("unknown option of a pass", ["digits", "--pipeline", "prune{macs=0.5 criterium=l1}"]),
    Case("unknown option of the command", ["digits", "--pipelin", "prune{macs=0.5}"]),
    Case("budget out of range", ["digits", "--pipeline", "prune{macs=1.5}"]),
    Case("budget that cannot be reached", ["digits", "--pipeline", "prune{macs=0.1 exclude=layer3}"]),
    Case("layer that does not exist", ["digits", "--pipeline", "prune{layers=layer9.conv1:0.5}"]),
    Case("coupled layers, two fractions", ["digits", "--pipeline", "prune{layers=conv1:0.5,layer1.0.conv2:0.25}"]),
    Case("output folder exists", ["digits", "-o", "taken"]),
    Case("disk full half way", ["digits"], file_limit=100_000),
    Case("an untraceable model", ["loops:untraceable", "--input", "1x3x8x8"]),
    Case("no data to measure accuracy on", ["digits"], command="evaluate"),
    Case("data that are not there", ["digits", *QUANTIZE, "--data", "nowhere"]),
    Case("a folder without images", ["resnet18", *QUANTIZE, "--data", "taken"]),
    Case("an image that does not decode", ["resnet18", *QUANTIZE, "--data", "images"]),
    Case("images without classes, where they are needed", ["resnet18", "--data", "flat"], command="evaluate"),
    Case("bad preprocessing text", ["resnet18", *QUANTIZE, "--data", "flat", "--preprocess", "crop=big"]),
    Case("a missing extra", ["digits", "--emit", "python,onnx"], without="onnxscript"),
    Case("a missing extra, for an engine", ["digits", "--backend", "openvino"], command="bench", without="openvino"),
    Case("an unknown engine", ["digits", "--backend", "tensorrt"], command="bench"),
    Case("settings for a layer that does not exist", ["digits", "--pipeline", "quantize{layers=conv9:float}"]),
    Case("a drop out of range", ["digits", "--pipeline", "quantize{max-drop=2}"]),
    Case("an observer that does not exist", ["digits", "--pipeline", "quantize{observer=median}"]),
)


def prepare(folder: Path) -> None:
    """Write the files that the cases name."""
    (folder / "broken.safetensors").write_bytes(b"not weights")
    save_file({"conv1.weight": torch.zeros(8, 3, 7, 7), "head.bias": torch.zeros(3)}, folder / "other.safetensors")
    torch.save({"state_dict": _Evil()}, folder / "evil.pth")
    (folder / "loops.py").write_text(LOOPS, "utf-8")
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.txt").write_text("precious", "utf-8")
    for place in ("images/cat", "images/dog", "flat"):
        (folder / place).mkdir(parents=True)
        Image.new("RGB", (300, 280)).save(folder / place / "0.png")
    (folder / "images" / "dog" / "1.jpg").write_bytes(b"no image at all")
    for package in {case.without for case in CASES if case.without}:
        (folder / "without" / package).mkdir(parents=True)
        hidden = f"raise ModuleNotFoundError(name={package!r})"
        (folder / "without" / package / f"{package}.py").write_text(hidden, "utf-8")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return subprocess.getoutput, ("touch executed",)


def run(case: Case, folder: Path) -> dict[str, object]:
    """Run one case; tell what it said and whether anything was left behind."""
    output = [] if "-o" in case.arguments or case.command != "compile" else ["-o", "out"]
    command = [case.command, *case.arguments, *output, "--quiet"]
    environment = dict(os.environ)
    if case.without:
        environment["PYTHONPATH"] = str(folder / "without" / case.without)
    before = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts)

    def limit() -> None:
        if case.file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case.file_limit, case.file_limit))

    done = subprocess.run(
        [sys.executable, "-m", "secateur", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    after = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts)
    clean = before == after and not done.stdout and "Traceback" not in done.stderr
    shown = " ".join(f"'{a}'" if set(a) & set("{} *") else a for a in command[:-1])
    return {
        "case": case.what,
        "command": f"secateur {shown}",
        "exit": done.returncode,
        "message": done.stderr.strip().replace(str(folder), "."),
        "holds": done.returncode == 2 and clean and done.stderr.count("secateur: ") == 1,
    }


def main() -> int:
    """Run all cases and write the record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        prepare(folder)
        rows = [run(case, folder) for case in CASES]
    head = header(torch.get_num_threads())
    lines = ["# Bad input", "", *describe(head), ""]
    lines += ["Every case exits with 2, in one message, without a traceback, and leaves nothing behind.", ""]
    for row in rows:
        verdict = "" if row["holds"] else " — DOES NOT HOLD"
        lines += [f"## {row['case']}{verdict}", "", "```", f"$ {row['command']}", str(row["message"]), "```", ""]
    write_results(RESULTS, "bad_input", {**head, "cases": rows}, lines)
    failed = [row["case"] for row in rows if not row["holds"]]
    print(f"{len(rows)} cases, {len(failed)} do not hold: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
