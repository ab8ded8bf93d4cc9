"""The zoo: tiny modules, one coupling each. Everything that is true of all models is tested on all of them."""

from . import zoo_attention, zoo_conv, zoo_elementwise, zoo_join, zoo_move, zoo_norm, zoo_program
from .zoo_case import ZOO, Case

FAMILIES = (zoo_attention, zoo_conv, zoo_elementwise, zoo_join, zoo_move, zoo_norm, zoo_program)

__all__ = ["ZOO", "Case"]
