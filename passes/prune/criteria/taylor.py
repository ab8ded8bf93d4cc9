"""First-order Taylor expansion: what removing a channel's weights does to the loss, squared.

    s = mean over batches of (sum w dL/dw)^2        over the weights w of a channel: a row, or a column

Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, eq. 8 (the contribution of a whole
filter), L the mean loss of a batch; ``gradients`` says which loss.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from .base import Context, Scores
from .gradients import weight_gradients
from .weights import ElementSums, is_weight


class Taylor:
    """Output rows and input columns alike, like the magnitudes."""

    needs_data: ClassVar[bool] = True
    fallback: ClassVar[str | None] = None
    estimates_loss: ClassVar[bool] = False

    def score(self, context: Context) -> Scores:
        """Score weights by their gradients; see :class:`.base.Criterion`."""
        uses = [use for use, _ in context.slices() if is_weight(use)]
        totals: dict[int, Scores] = {}
        for products in weight_gradients(context):
            sums = ElementSums(Tensor.double)
            for index, use in enumerate(uses):
                if use.name in products:
                    totals[index] = totals.get(index, 0.0) + np.square(sums(products[use.name], use))
        scored = ((context.deps.class_of[uses[i].atoms], total / len(context.batches)) for i, total in totals.items())
        return context.combine(scored)
