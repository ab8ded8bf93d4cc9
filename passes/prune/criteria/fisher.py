"""Group Fisher: the second-order effect of a channel's mask on the loss, by the Fisher information.

    s_c = 1/2N sum over samples n of (sum over readers of c, positions of x dL_n/dx)^2

The inner sum is the gradient of sample n's loss with respect to one mask that multiplies the channel wherever it is
read; its mean square is the diagonal of the Fisher matrix, which stands for that of the Hessian, and half of that is
what the loss rises by, in nats per sample. Channels that are coupled share the mask, so the sum over them comes before
the square, and ``aggregate`` has nothing left to do. Liu et al., Group Fisher Pruning for Practical Network
Compression, ICML 2021, without the division by the memory that a channel takes.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from .base import Context, Scores
from .gradients import mask_gradients
from .running import readers


class Fisher:
    """Half the mean squared gradient of the mask of every class that something reads."""

    needs_data: ClassVar[bool] = True
    fallback: ClassVar[str | None] = None
    estimates_loss: ClassVar[bool] = True

    def score(self, context: Context) -> Scores:
        """Score what readers read; see :class:`.base.Criterion`."""
        total, samples = np.zeros(context.classes), 0
        for gradients in mask_gradients(context):
            total += gradients.square().sum(0).numpy()
            samples += len(gradients)
        read = np.zeros(context.classes, dtype=np.bool_)
        for reader in readers(context.program, context.deps):
            read[reader.classes] = True
        return np.where(read, total / max(2 * samples, 1), np.nan)
