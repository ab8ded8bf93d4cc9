"""Normalisations."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .zoo_case import case, conv, make, parameter


@case(
    stem=conv(3, 8, bias=False),
    norm=make(nn.BatchNorm2d, 8),
    mid=conv(8, 6),
    plain=make(nn.BatchNorm2d, 6, affine=False),
    head=conv(6, 4),
    free="stem mid",
)
def batch_norm(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.plain(self.mid(F.relu(self.norm(self.stem(x)))))))


@case(
    stem=conv(3, 8),
    mean=lambda: torch.randn(8),
    var=lambda: torch.rand(8) + 0.5,
    scale=parameter(8),
    shift=parameter(8),
    head=conv(8, 4),
    free="stem",
)
def functional_batch_norm(self: Any, x: Tensor) -> Tensor:
    x = F.batch_norm(self.stem(x), self.mean, self.var.abs(), self.scale, self.shift, self.training, 0.1, 1e-5)
    return self.head(F.relu(x))


@case(stem=conv(3, 12), norm=make(nn.GroupNorm, 3, 12), head=conv(12, 4), free="stem")
def group_norm(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.norm(self.stem(x))))


@case(stem=conv(3, 12), a=conv(12, 12, groups=2), norm=make(nn.GroupNorm, 3, 12), head=conv(12, 4), free="stem a")
def group_norm_of_groups(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.norm(self.a(self.stem(x)))))


@case(stem=conv(3, 12), norm=make(nn.GroupNorm, 12, 12), one=make(nn.GroupNorm, 1, 12), head=conv(12, 4), free="stem")
def group_norm_of_singles(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.one(self.norm(self.stem(x)))))


@case(stem=conv(3, 12), scale=parameter(12), shift=parameter(12), head=conv(12, 4), free="stem")
def functional_group_norm(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(F.group_norm(F.group_norm(self.stem(x), 4), 2, self.scale, self.shift)))


@case(
    stem=conv(3, 8),
    norm=make(nn.InstanceNorm2d, 8, affine=True),
    mid=conv(8, 8),
    track=make(nn.InstanceNorm2d, 8, track_running_stats=True),
    head=conv(8, 4),
    free="stem mid",
)
def instance_norm(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.track(self.mid(self.norm(self.stem(x))))))


@case(stem=conv(3, 8), scale=parameter(8), shift=parameter(8), head=conv(8, 4), free="stem")
def layer_norm_channels_last(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x).permute(0, 2, 3, 1)
    x = F.layer_norm(x, (8,), self.scale, self.shift, 1e-6)
    return self.head(x.permute(0, 3, 1, 2))


@case(
    stem=conv(3, 8),
    deep=conv(8, 8, groups=8),
    norm=make(nn.LayerNorm, 8),
    a=make(nn.Linear, 8, 16),
    b=make(nn.Linear, 16, 8),
    scale=parameter(8),
    head=conv(8, 4),
    free="stem a",
)
def convnext_block(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    y = self.norm(self.deep(x).permute(0, 2, 3, 1))
    y = (self.scale * self.b(F.gelu(self.a(y)))).permute(0, 3, 1, 2)
    return self.head(x + y)


@case(stem=conv(3, 8), norm=make(nn.RMSNorm, 8), head=conv(8, 4), free="stem")
def rms_norm(self: Any, x: Tensor) -> Tensor:
    x = self.norm(self.stem(x).permute(0, 2, 3, 1))
    return self.head(x.permute(0, 3, 1, 2))


@case(stem=conv(3, 8), scale=parameter(8), head=conv(8, 4), free="stem")
def rms_norm_by_function(self: Any, x: Tensor) -> Tensor:
    x = F.rms_norm(self.stem(x).permute(0, 2, 3, 1), (8,), self.scale, 1e-3)
    return self.head(x.permute(0, 3, 1, 2))


@case(stem=conv(3, 8), norm=make(nn.LayerNorm, [8, 8, 8]), head=conv(8, 4), free="stem")
def layer_norm_over_everything(self: Any, x: Tensor) -> Tensor:
    return self.head(self.norm(self.stem(x)))


@case(stem=conv(3, 8), norm=make(nn.LayerNorm, [8, 8]), head=conv(8, 4), free="stem")
def layer_norm_over_space(self: Any, x: Tensor) -> Tensor:
    return self.head(self.norm(self.stem(x)))


@case(stem=conv(3, 8), head=conv(8, 4), free="stem")
def layer_norm_without_weights(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x).permute(0, 2, 3, 1)
    return self.head(F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2))


@case(stem=conv(3, 8), head=conv(8, 4), free="stem")
def norm_by_hand(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    u = x.mean(1, keepdim=True)
    s = (x - u).pow(2).mean(1, keepdim=True)
    return self.head((x - u) / torch.sqrt(s + 1e-6))


@case(stem=conv(3, 8), head=conv(8, 4), free="stem")
def normalised_features(self: Any, x: Tensor) -> Tensor:
    return self.head(F.normalize(self.stem(x), dim=1))


@case(stem=conv(3, 8), norm=make(nn.LocalResponseNorm, 3), head=conv(8, 4), pinned={"stem": "LocalResponseNorm"})
def local_response_norm(self: Any, x: Tensor) -> Tensor:
    return self.head(self.norm(self.stem(x)))


@case(stem=conv(3, 8), beta=parameter(8), gamma=parameter(8), head=conv(8, 4), free="stem")
def global_response_norm_over_space(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    g = torch.sqrt((x * x).sum((2, 3), keepdim=True))
    return self.head(x + self.gamma.view(1, -1, 1, 1) * (x * g) + self.beta.view(1, -1, 1, 1))
