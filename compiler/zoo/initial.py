"""Initial weights, as the systems that these networks come from draw them."""

from __future__ import annotations

import math

from torch import nn


def initialise(network: nn.Module, *, scale: float = 1.0, linear: float | None = 0.01) -> None:
    """Draw weights from torch's global generator: convolutions from N(0, 2 / (k^2 O)), shifts and biases 0.

    Args:
        network: Its layers are changed in place.
        scale: Of batch norms. Network slimming begins at 0.5, so that scales have not far to go to 0.
        linear: Standard deviation of linear weights; ``None`` for He's, sqrt(2 / I).
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            fan = math.prod(layer.kernel_size) * layer.out_channels
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / fan))
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / layer.in_features) if linear is None else linear)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.constant_(layer.weight, scale)
            nn.init.zeros_(layer.bias)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
