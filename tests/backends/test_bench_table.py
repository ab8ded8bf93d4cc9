"""The table shows every row, why what is missing is missing, and the notes."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from secateur.backends.bench import BenchReport, Profile, Ratio, Refusal, Row, Setting
from secateur.backends.bench_table import table
from secateur.backends.engines.op_times import OpTime
from secateur.backends.profile import blame

ONE, TWO = Setting("onnx", 1, 1), Setting("onnx", 2, 8)
REPORT = BenchReport(
    rows=(
        Row(ONE, "original", 0.0123, 0.0150, 30, None),
        Row(ONE, "compiled", 0.00613, 0.0071, 30, Ratio(0.5, 0.48, 0.53)),
        Row(TWO, "original", 2.5, 3.5, 30, None),
        Row(TWO, "compiled", 0.000123, 0.0002, 30, Ratio(1.25, 0.9, 1.5)),
    ),
    refusals=(Refusal(Setting("openvino", 1, 1), "compiled", "no such operator"),),
    notes=("something to know",),
    machine={"name": "Some CPU", "architecture": "x86_64", "features": ["avx2", "vnni"], "system": "Linux"},
    versions={"torch": "2.13", "onnxruntime": "1.32"},
)


def _shown(report: BenchReport) -> list[str]:
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(table(report))
    return [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()]


def test_rows_refusals_notes_and_machine() -> None:
    assert _shown(REPORT) == [
        "backend threads batch model p50 ms p90 ms ratio quartiles rounds",
        "onnx 1 1 original 12.3 15 30",
        "compiled 6.13 7.1 x0.50 0.48 to 0.53 30",
        "onnx 2 8 original 2500 3500 30",
        "compiled 0.123 0.200 x1.25 0.90 to 1.50 30",
        "not run compiled on openvino, 1 thread, batch 1 no such operator",
        "note something to know",
        "Some CPU (avx2, vnni); torch 2.13, onnxruntime 1.32",
    ]


def test_nothing_to_add() -> None:
    lines = _shown(BenchReport(REPORT.rows[:1], (), (), {"name": "", "architecture": "riscv64", "features": []}, {}))
    assert lines[1:] == ["onnx 1 1 original 12.3 15 30", "riscv64 (no integer instructions);"]


def test_profiles_are_shown_with_the_sentence() -> None:
    before = [OpTime("stem", "convolution", 2.0, "float32")]
    after = [OpTime("stem", "convolution", 3.0, "float32")]
    profile = Profile(ONE, "int8", "original", blame(before, after))
    lines = _shown(replace(REPORT, refusals=(), notes=(), profiles=(profile,)))
    assert lines[5:7] == [
        "int8 and original on onnx, 1 thread, batch 1, operation by operation",
        "operations float32 ms int8 ms more ms number in float32 slowest ms",
    ]
    assert lines[7] == "convolution 2.00 3.00 +1.00 1 -> 1 1 stem 3.00"
    assert lines[8].startswith("why convolution operations take 1.00 ms more than in float32")
