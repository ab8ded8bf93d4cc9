"""Sums, products, gates, activations: what aligns channels."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .zoo_case import case, conv, make, parameter, sequence


@case(stem=conv(3, 8), body=conv(8, 8), head=conv(8, 4), free="stem body")
def residual(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    return self.head(F.relu(x + self.body(x)))


@case(
    stem=conv(3, 8),
    a=sequence(make(nn.BatchNorm2d, 8), make(nn.ReLU), conv(8, 8), make(nn.BatchNorm2d, 8), make(nn.ReLU), conv(8, 8)),
    last=make(nn.BatchNorm2d, 8),
    head=conv(8, 4),
    free="stem a.2 a.5",
)
def pre_activation(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    return self.head(F.relu(self.last(x + self.a(x))))


@case(stem=conv(3, 8), head=conv(8, 4), free="stem")
def squared(self: Any, x: Tensor) -> Tensor:
    a = self.stem(x)
    return self.head(a * a)


@case(stem=conv(3, 8), squeeze=conv(8, 4, 1), excite=conv(4, 8, 1), head=conv(8, 4), free="stem squeeze excite")
def squeeze_excitation(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
    return self.head(x * gate)


@case(stem=conv(3, 8), a=make(nn.Linear, 8, 4), b=make(nn.Linear, 4, 8), head=conv(8, 4), free="stem a b")
def squeeze_excitation_by_linear(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    b, c, _, _ = x.size()
    gate = torch.sigmoid(self.b(F.relu(self.a(x.mean((2, 3)).view(b, c))))).view(b, c, 1, 1)
    return self.head(x * gate.expand_as(x))


@case(stem=conv(3, 8), mix=make(nn.Conv1d, 1, 1, 3, padding=1), head=conv(8, 4), pinned={"stem": "channel"})
def efficient_channel_attention(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    y = x.mean((2, 3), keepdim=True)
    y = self.mix(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
    return self.head(x * torch.sigmoid(y))


@case(stem=conv(3, 8), body=conv(8, 8), head=conv(8, 4), free="stem body")
def masked_and_mixed(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    y = self.body(x).masked_fill(x < 0, 0.5)
    return self.head(torch.addcmul(x, y, y, value=0.5))


@case(stem=conv(3, 8), gate=conv(8, 1), head=conv(8, 4), free="stem", pinned={"gate": "broadcast"})
def spatial_gate(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    return self.head(x * torch.sigmoid(self.gate(x)))


@case(stem=conv(3, 8), scale=parameter(8, 1, 1), body=conv(8, 8), head=conv(8, 4), free="stem body")
def layer_scale(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    return self.head(x + self.scale * self.body(x))


@case(stem=conv(3, 8), scale=parameter(1, 8, 1, 1), shift=parameter(1), head=conv(8, 4), free="stem")
def scale_and_shift(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x) * self.scale + self.shift)


@case(stem=conv(3, 8), bias=parameter(8), head=conv(8, 4), free="stem")
def bias_by_view(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.stem(x) + self.bias.view(1, -1, 1, 1)))


@case(stem=conv(3, 8), bias=parameter(8), head=conv(8, 4), free="stem")
def bias_by_none(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.stem(x) + self.bias[None, :, None, None]))


@case(stem=conv(3, 8), many=make(nn.PReLU, 8), one=make(nn.PReLU), mid=conv(8, 8), head=conv(8, 4), free="stem mid")
def slopes(self: Any, x: Tensor) -> Tensor:
    return self.head(self.one(self.mid(self.many(self.stem(x)))))


@case(stem=conv(3, 8), head=conv(8, 4), free="stem")
def scale_by_width(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    return self.head(x / math.sqrt(x.shape[1]) + x * x.shape[1] ** -0.5)


@case(stem=conv(3, 8), a=conv(3, 8), head=conv(8, 4), free="stem a")
def where_larger(self: Any, x: Tensor) -> Tensor:
    a, b = self.stem(x), self.a(x)
    return self.head(torch.where(a > b, a, torch.maximum(a, b) * 0.5))


@case(stem=conv(3, 12), head=conv(6, 4), free="stem")
def gated_linear_unit(self: Any, x: Tensor) -> Tensor:
    return self.head(F.glu(self.stem(x), dim=1))


@case(stem=conv(3, 12), head=conv(6, 4), free="stem")
def maxout(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    n, c, h, w = x.shape
    return self.head(x.view(n, c // 2, 2, h, w).max(2).values)


@case(stem=conv(3, 12), head=conv(6, 4), free="stem")
def max_feature_map(self: Any, x: Tensor) -> Tensor:
    a, b = torch.split(self.stem(x), 6, 1)
    return self.head(torch.max(a, b))


@case(
    stem=conv(3, 12, groups=1),
    squeeze=conv(6, 4, 1),
    attend=conv(4, 12, 1),
    head=conv(6, 4),
    free="stem squeeze attend",
)
def radix_attention(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    n, c, h, w = x.shape
    parts = x.view(n, 2, c // 2, h, w)
    gap = parts.sum(1).mean((2, 3), keepdim=True)
    weights = self.attend(F.relu(self.squeeze(gap))).view(n, 2, c // 2, 1, 1)
    return self.head((parts * torch.softmax(weights, 1)).sum(1))


@case(stem=conv(3, 8), head=conv(8, 4), pinned={"stem": "softmax mixes"})
def softmax_over_channels(self: Any, x: Tensor) -> Tensor:
    return self.head(F.softmax(self.stem(x), dim=1))


@case(stem=conv(3, 8), head=conv(1, 4), free="stem")
def mean_over_channels(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x).mean(1, keepdim=True))


@case(stem=conv(3, 8), head=conv(8, 4), gate=conv(2, 1), pinned={"stem": "mixes"})
def convolutional_block_attention(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    y = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    return self.head(x * torch.sigmoid(self.gate(y)))


@case(stem=conv(3, 8), body=conv(8, 8), head=conv(8, 4), drop=make(nn.Dropout2d, 0.3), free="stem body")
def dropout(self: Any, x: Tensor) -> Tensor:
    x = F.dropout(F.relu(self.stem(x)), 0.4, self.training)
    return self.head(x + self.drop(self.body(x)))


@case(stem=conv(3, 8), body=conv(8, 8), relu=make(nn.ReLU, inplace=True), head=conv(8, 4), free="stem body")
def in_place(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    y = self.body(self.relu(x))
    y += x
    y.mul_(0.5).add_(x)
    y.relu_()
    return self.head(y)


@case(stem=conv(3, 8), body=conv(8, 8), head=conv(8, 4), free="stem body")
def residual_between_pools(self: Any, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
    y = F.interpolate(self.body(x), scale_factor=2.0, mode="bilinear", align_corners=False)
    return self.head(F.avg_pool2d(y, 2) + x)


@case(stem=conv(3, 8), side=conv(3, 8, stride=2), head=conv(8, 4), free="stem side")
def interpolate_to_another_size(self: Any, x: Tensor) -> Tensor:
    a, b = self.stem(x), self.side(x)
    return self.head(a + F.interpolate(b, size=a.shape[2:], mode="nearest"))


@case(stem=conv(3, 8), grid=parameter(1, 1, 8, 8), head=conv(8, 4), free="stem")
def positions_added(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x) + self.grid)


@case(stem=conv(3, 8), grid=parameter(1, 8, 8, 8), head=conv(8, 4), free="stem")
def positions_added_per_channel(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x) + self.grid)


@case(stem=conv(3, 8), head=conv(8, 4), noise=lambda: torch.randn(1, 8, 1, 1), free="stem")
def constant_buffer(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x) * self.noise)


@case(stem=conv(3, 3), head=conv(3, 4), pinned={"stem": "the model's input"})
def added_to_the_input(self: Any, x: Tensor) -> Tensor:
    return self.head(x + self.stem(x))


@case(stem=conv(3, 8), head=conv(8, 4), pinned={"stem": "new_zeros"})
def added_to_new_zeros(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    return self.head(x + x.new_zeros(1, x.shape[1], 1, 1))


@case(stem=conv(3, 8), head=conv(8, 4), free="stem")
def clamped(self: Any, x: Tensor) -> Tensor:
    return self.head(torch.clamp(F.leaky_relu(self.stem(x), 0.1), -1.0, 2.0).pow(2).neg().abs())
