"""Sizes of which a factor or a divisor follows the channels: heads that are merged with the batch.

    reshape(x, (b * 4, n, d))   ->   reshape(x, (b * 2, n, d))       two of four heads are left
    view(x, (m // 4, 4, ...))   ->   view(x, (m // 2, 2, ...))       m: batch and heads

A literal in place of such a number would fix the batch size.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from ...compiler.shapes import set_value, value_of


def rescaled(number: Any, wanted: int, before: fx.Node) -> fx.Node | None:
    """Return a number that follows the batch as this one does, and is what is wanted of it now.

    Args:
        number: What was written: a node, or a number.
        wanted: What it should be for the example's batch.
        before: Where a node may be added.

    Returns:
        ``None`` where nothing follows the batch, or not by a factor or divisor that is written down.
    """
    if not isinstance(number, fx.Node) or not _follows_batch(number) or len(number.args) != 2:
        return None
    a, b = number.args
    if number.target is operator.mul and isinstance(a, int):
        a, b = b, a
    now = value_of(number)
    if not isinstance(a, fx.Node) or not isinstance(b, int) or not isinstance(now, int) or not wanted:
        return None
    if number.target is operator.mul:
        function, (factor, rest) = operator.mul, divmod(b * wanted, now)
    elif number.target is operator.floordiv:
        function, (factor, rest) = operator.floordiv, divmod(value_of(a), wanted)
    else:
        return None
    if rest or not factor:
        return None
    with before.graph.inserting_before(before):
        new = before.graph.call_function(function, (a, factor))
    new.meta = dict(number.meta)
    set_value(new, wanted)
    return new


def _follows_batch(number: fx.Node) -> bool:
    """Tell whether a number is computed from the size of a first axis."""
    if number.target in (operator.getitem, "size") and number.args[1:] == (0,):
        return True
    return any(_follows_batch(n) for n in number.all_input_nodes if isinstance(value_of(n), int))
