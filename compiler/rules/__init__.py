"""The op rules, one family per file. Importing this package fills the table; the list is explicit."""

from . import convolution, elementwise, join, linear, norm, pool, product, put, reshape, select
from .registry import RULES, RuleContext, rule

FAMILIES = (convolution, elementwise, join, linear, norm, pool, product, put, reshape, select)

__all__ = ["FAMILIES", "RULES", "RuleContext", "rule"]
