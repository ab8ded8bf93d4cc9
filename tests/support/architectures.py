"""Published architectures that torchvision does not have, tiny, each written as its authors write it."""

from . import arch_attention, arch_blocks, arch_fusion, arch_modern, arch_sequence, arch_unusual
from .arch_case import ARCHITECTURES

FAMILIES = (arch_attention, arch_blocks, arch_fusion, arch_modern, arch_sequence, arch_unusual)

__all__ = ["ARCHITECTURES"]
