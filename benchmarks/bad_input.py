"""What a user sees for bad input: each case once, as a command of its own.

    python benchmarks/bad_input.py

Each must exit with 2, say one thing on stderr, print nothing on stdout and leave nothing behind. Writes
results/bad_input.json and results/bad_input.md.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import RESULTS, describe, header, write_results
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


@dataclass(frozen=True)
class Case:
    """One mistake."""

    what: str
    arguments: Sequence[str]
    file_limit: int | None = None
    """Bytes that a file may grow to: what a full disk does to the file being written."""


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
)


def prepare(folder: Path) -> None:
    """Write the files that the cases name."""
    (folder / "broken.safetensors").write_bytes(b"not weights")
    save_file({"conv1.weight": torch.zeros(8, 3, 7, 7), "head.bias": torch.zeros(3)}, folder / "other.safetensors")
    torch.save({"state_dict": _Evil()}, folder / "evil.pth")
    (folder / "loops.py").write_text(LOOPS, "utf-8")
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.txt").write_text("precious", "utf-8")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return subprocess.getoutput, ("touch executed",)


def run(case: Case, folder: Path) -> dict[str, object]:
    """Run one case; tell what it said and whether anything was left behind."""
    output = [] if "-o" in case.arguments else ["-o", "out"]
    command = ["compile", *case.arguments, *output, "--quiet"]
    before = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts)

    def limit() -> None:
        if case.file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case.file_limit, case.file_limit))

    done = subprocess.run(
        [sys.executable, "-m", "secateur", *command], cwd=folder, capture_output=True, text=True, preexec_fn=limit
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
