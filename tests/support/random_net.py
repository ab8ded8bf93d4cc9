"""Random convolutional networks for property tests."""

from math import gcd
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = (
    "conv grouped depthwise batch_norm group_norm layer_norm relu add mul cat split gate shuffle rows mixed_rows "
    "squeeze slice steps pad roll flip pool repeat stack row_sum transpose shared"
).split()
Step = tuple[str, int, int, int]
"""What to do, to which values (taken modulo their number), and a number that each kind reads in its own way."""

steps = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 20), st.integers(0, 20), st.integers(0, 11)),
    min_size=2,
    max_size=9,
)


class RandomNet(nn.Module):
    """A network that is a list of steps; every value that nobody reads goes into the linear head."""

    def __init__(self, plan: list[Step]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.layers = nn.ModuleDict()
        self.shared = nn.Conv2d(12, 12, 1)
        self.plan = plan
        self.head: nn.Module | None = None
        x = torch.zeros(2, 3, 6, 6)
        with torch.no_grad():
            features = torch.cat([v.mean((2, 3)) for v in self._features(x)], 1)
            self.head = nn.Linear(features.shape[1], 3)
            for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
                if "running_var" in name or (tensor.ndim == 1 and name.endswith("weight")):
                    tensor.uniform_(0.5, 1.5)
                elif tensor.is_floating_point() and tensor.ndim == 1:
                    tensor.normal_()

    def forward(self, x: Tensor) -> Tensor:
        assert self.head is not None
        return self.head(torch.cat([v.mean((2, 3)) for v in self._features(x)], 1))

    def _features(self, x: Tensor) -> list[Tensor]:
        values, sizes, read = [self.stem(x)], [12], set[int]()
        for number, (kind, i, j, k) in enumerate(self.plan):
            i, j = i % len(values), j % len(values)
            made = getattr(self, f"_{kind}")(str(number), (values[i], sizes[i]), (values[j], sizes[j]), k)
            read |= {i, j} if kind in ("add", "mul", "cat", "stack") else {i}
            for value, size in made:
                values.append(value)
                sizes.append(size)
        return [v for index, v in enumerate(values) if index not in read]

    def _layer(self, name: str, layer: Any) -> Any:
        if name not in self.layers:
            self.layers[name] = layer()
        return self.layers[name]

    def _fit(self, name: str, a: Any, channels: int) -> Tensor:
        x, size = a
        return x if size == channels else self._layer(f"{name}_fit", lambda: nn.Conv2d(size, channels, 1))(x)

    def _conv(self, name: str, a: Any, b: Any, k: int) -> Any:
        out = (4, 6, 8, 12)[k % 4]
        return [(self._layer(name, lambda: nn.Conv2d(a[1], out, 3, padding=1, bias=k > 3))(a[0]), out)]

    def _grouped(self, name: str, a: Any, b: Any, k: int) -> Any:
        groups = gcd(a[1], (2, 3, 4)[k % 3])
        out = groups * (2, 3, 4, 6)[k // 3]
        return [(self._layer(name, lambda: nn.Conv2d(a[1], out, 3, padding=1, groups=groups))(a[0]), out)]

    def _depthwise(self, name: str, a: Any, b: Any, k: int) -> Any:
        out = a[1] * (1 + k % 2)
        return [(self._layer(name, lambda: nn.Conv2d(a[1], out, 3, padding=1, groups=a[1]))(a[0]), out)]

    def _batch_norm(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(self._layer(name, lambda: nn.BatchNorm2d(a[1]))(a[0]), a[1])]

    def _group_norm(self, name: str, a: Any, b: Any, k: int) -> Any:
        groups = gcd(a[1], (1, 2, 3, 4)[k % 4])
        return [(self._layer(name, lambda: nn.GroupNorm(groups, a[1]))(a[0]), a[1])]

    def _layer_norm(self, name: str, a: Any, b: Any, k: int) -> Any:
        norm = self._layer(name, lambda: nn.LayerNorm(a[1]))
        return [(norm(a[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a[1])]

    def _relu(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(F.leaky_relu(a[0], 0.2), a[1])]

    def _add(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(self._fit(name, a, b[1]) + b[0], b[1])]

    def _mul(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(torch.tanh(self._fit(name, a, b[1])) * b[0], b[1])]

    def _cat(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(torch.cat([a[0], b[0]], 1), a[1] + b[1])] if a[1] + b[1] <= 32 else [a]

    def _split(self, name: str, a: Any, b: Any, k: int) -> Any:
        if a[1] < 2:
            return [a]
        at = 1 + k % (a[1] - 1)
        first, second = torch.split(a[0], [at, a[1] - at], 1)
        return [(first, at), (second, a[1] - at)]

    def _gate(self, name: str, a: Any, b: Any, k: int) -> Any:
        if a[1] % 2:
            return [a]
        first, second = a[0].chunk(2, 1)
        return [(first * torch.sigmoid(second), a[1] // 2)]

    def _view(self, x: Tensor, groups: int) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, groups, c // groups, h, w)

    def _merge(self, x: Tensor) -> Tensor:
        n, g, c, h, w = x.shape
        return x.reshape(n, g * c, h, w)

    def _shuffle(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(self._merge(self._view(a[0], gcd(a[1], 2 + k % 3)).transpose(1, 2)), a[1])]

    def _rows(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(self._merge(torch.tanh(self._view(a[0], gcd(a[1], 2 + k % 3)))), a[1])]

    def _mixed_rows(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(self._merge(torch.tanh(self._view(a[0], gcd(a[1], 2 + k % 3)).transpose(1, 2))), a[1])]

    def _squeeze(self, name: str, a: Any, b: Any, k: int) -> Any:
        gate = self._layer(name, lambda: nn.Linear(a[1], a[1]))(a[0].mean((2, 3)))
        return [(a[0] * torch.sigmoid(gate)[:, :, None, None], a[1])]

    def _slice(self, name: str, a: Any, b: Any, k: int) -> Any:
        start = k % a[1]
        stop = max(start + 1, a[1] - k % 3)
        return [(a[0][:, start:stop], len(range(a[1])[start:stop]))]

    def _steps(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(a[0][:, k % 2 :: 2], len(range(a[1])[k % 2 :: 2]))] if a[1] > 2 else [a]

    def _pad(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(F.pad(a[0], (0, 0, 0, 0, k % 3, k // 3)), a[1] + k % 3 + k // 3)]

    def _roll(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(torch.roll(a[0], k, 1), a[1])]

    def _flip(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(a[0].flip(1), a[1])]

    def _pool(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(F.max_pool2d(a[0], 3, 1, 1), a[1])]

    def _repeat(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(a[0].repeat(1, 2, 1, 1), 2 * a[1])] if a[1] <= 12 else [a]

    def _stack(self, name: str, a: Any, b: Any, k: int) -> Any:
        both = torch.stack([self._fit(name, a, b[1]), b[0]], 1 + k % 2)
        return [(self._merge(both), 2 * b[1])] if b[1] <= 16 else [(both.sum(1 + k % 2), b[1])]

    def _row_sum(self, name: str, a: Any, b: Any, k: int) -> Any:
        groups = gcd(a[1], 2 + k % 3)
        rows = k % 2 == 0
        return [(self._view(a[0], groups).sum(1 if rows else 2), a[1] // groups if rows else groups)]

    def _transpose(self, name: str, a: Any, b: Any, k: int) -> Any:
        out = (4, 6, 8)[k % 3]
        layer = self._layer(name, lambda: nn.ConvTranspose2d(a[1], out, 3, padding=1))
        return [(layer(a[0]), out)]

    def _shared(self, name: str, a: Any, b: Any, k: int) -> Any:
        return [(self.shared(self._fit(name, a, 12)), 12)]
