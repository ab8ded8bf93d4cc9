"""Which integer instructions the processor has: they decide how many bits a weight may use, and what int8 gains.

Without VNNI, x86 multiplies bytes by ``vpmaddubsw``: uint8 x int8, two products added in int16 with saturation. Two
products of 255 x 127 do not fit; weights of 7 bits (|w| <= 63) always do: 2 x 255 x 63 = 32130 <= 32767. With VNNI
(``vpdpbusd``), AMX and Arm's dot product the sums are int32, and weights may use all 8 bits. Intel 64 and IA-32
Architectures Optimization Reference Manual, chapter on VNNI; ONNX Runtime calls the same choice ``reduce_range``.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")

# Feature -> the flags of /proc/cpuinfo that mean it, any of them.
_FLAGS: Final[dict[str, tuple[str, ...]]] = {
    "avx2": ("avx2",),
    "avx512": ("avx512bw",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "amx": ("amx_int8",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
}

_X86: Final = frozenset({"x86_64", "amd64", "i386", "i686"})


@dataclass(frozen=True)
class Cpu:
    """A processor, as far as integer arithmetic is concerned."""

    architecture: str
    """As ``platform.machine()`` calls it, in lower case: x86_64, aarch64, arm64, ..."""
    features: frozenset[str]
    """Of avx2, avx512, vnni, amx, dotprod, i8mm."""
    name: str = ""
    """The maker's name for it; empty where it is not told."""

    @property
    def weight_bits(self) -> int:
        """Bits that an int8 weight may use without sums that saturate: 8, or 7 on x86 without VNNI."""
        if self.architecture in _X86 and not self.features & {"vnni", "amx"}:
            return 7
        return 8

    def to_json(self) -> dict[str, object]:
        """Return the form of reports."""
        return {"name": self.name, "architecture": self.architecture, "features": sorted(self.features)}


def read_cpu(cpuinfo: str | None = None, architecture: str | None = None) -> Cpu:
    """Return the processor that this runs on.

    Args:
        cpuinfo: Text in the format of Linux's ``/proc/cpuinfo``; the machine's own by default, or what torch finds out
            where there is no such file.
        architecture: ``platform.machine()`` by default.
    """
    architecture = (architecture or platform.machine()).lower()
    if cpuinfo is None:
        try:
            cpuinfo = _CPUINFO.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return Cpu(architecture, _from_torch(), platform.processor())
    flags: set[str] = set()
    name = ""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "flags" | "Features":
                # Of processors that differ (big and little cores) only what all of them have can be relied on.
                flags = flags & set(value.split()) if flags else set(value.split())
            case "model name":
                name = name or value.strip()
            case _:
                pass
    features = frozenset(feature for feature, words in _FLAGS.items() if flags.intersection(words))
    return Cpu(architecture, features, name)


def _from_torch() -> frozenset[str]:
    """Ask torch, whose private probes may go away in any release; what it does not tell counts as absent."""
    import torch

    probes = {
        "avx2": "_is_avx2_supported",
        "avx512": "_is_avx512_supported",
        "vnni": "_is_vnni_supported",
        "amx": "_is_amx_tile_supported",
    }
    found = {feature for feature, probe in probes.items() if getattr(torch.cpu, probe, bool)()}
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        found.add("dotprod")  # every Apple processor of this architecture has it
    return frozenset(found)
