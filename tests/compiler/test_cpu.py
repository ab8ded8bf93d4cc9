"""Processors are told apart by text, so the test needs none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.compiler import cpu
from secateur.compiler.cpu import Cpu, read_cpu

HASWELL = "processor\t: 0\nmodel name\t: Some CPU @ 2.30GHz\nflags\t\t: fpu sse2 avx avx2 fma\n"
ICELAKE = "model name\t: Server\nflags\t\t: avx2 avx512f avx512bw avx512_vnni\n"
ALDER = "flags\t\t: avx2 avx_vnni\n"
SAPPHIRE = "flags : avx2 avx512bw avx512_vnni amx_bf16 amx_tile amx_int8\n"
GRAVITON = "processor : 0\nFeatures\t: fp asimd asimddp i8mm\n"


@pytest.mark.parametrize(
    ("text", "machine", "features", "bits"),
    [
        (HASWELL, "x86_64", {"avx2"}, 7),
        (ICELAKE, "x86_64", {"avx2", "avx512", "vnni"}, 8),
        (ALDER, "AMD64", {"avx2", "vnni"}, 8),
        (SAPPHIRE, "x86_64", {"avx2", "avx512", "vnni", "amx"}, 8),
        (GRAVITON, "aarch64", {"dotprod", "i8mm"}, 8),
        ("", "x86_64", set[str](), 7),
        ("", "riscv64", set[str](), 8),
    ],
)
def test_features_and_weight_bits(text: str, machine: str, features: set[str], bits: int) -> None:
    found = read_cpu(text, machine)
    assert found.features == features
    assert found.weight_bits == bits
    assert found.architecture == machine.lower()


def test_only_what_all_cores_have_counts() -> None:
    assert read_cpu("flags: avx2 avx_vnni\n\nflags: avx2\n", "x86_64").features == {"avx2"}


def test_the_name_is_the_makers() -> None:
    assert read_cpu(HASWELL, "x86_64").name == "Some CPU @ 2.30GHz"
    assert read_cpu(HASWELL, "x86_64").to_json() == {
        "name": "Some CPU @ 2.30GHz",
        "architecture": "x86_64",
        "features": ["avx2"],
    }


def test_torch_is_asked_where_there_is_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "none")
    for probe, answer in (("avx2", True), ("avx512", False), ("vnni", True), ("amx_tile", False)):
        monkeypatch.setattr(f"torch.cpu._is_{probe}_supported", lambda a=answer: a)
    monkeypatch.setattr("platform.system", lambda: "Windows")
    assert read_cpu(architecture="AMD64") == Cpu("amd64", frozenset({"avx2", "vnni"}), cpu.platform.processor())
