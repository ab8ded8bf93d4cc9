"""Concatenation, padding, stacking."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .zoo_case import case, conv, make, parameter


@case(stem=conv(3, 8), a=conv(8, 4), b=conv(12, 4), norm=make(nn.BatchNorm2d, 16), head=conv(16, 4), free="stem a b")
def dense_block(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    a = F.relu(self.a(x))
    b = F.relu(self.b(torch.cat([x, a], 1)))
    return self.head(self.norm(torch.cat([x, a, b], 1)))


@case(a=conv(3, 4), b=conv(3, 6), c=conv(3, 2), head=conv(12, 4), free="a b c")
def cat_of_cat(self: Any, x: Tensor) -> Tensor:
    return self.head(torch.cat((torch.cat((self.a(x), self.b(x)), 1), self.c(x)), dim=-3))


@case(a=conv(3, 6), head=conv(12, 4), free="a")
def cat_of_the_same_twice(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.a(x))
    return self.head(torch.cat([x, x], 1))


@case(a=conv(3, 6), norm=make(nn.BatchNorm2d, 12), mid=conv(12, 8, groups=2), head=conv(8, 4), free="a mid")
def same_twice_into_groups(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.a(x))
    return self.head(F.relu(self.mid(self.norm(torch.cat([x, -x], 1)))))


@case(a=conv(3, 6), head=conv(9, 4), free="a")
def cat_with_the_input(self: Any, x: Tensor) -> Tensor:
    return self.head(torch.cat([self.a(x), x], 1))


@case(a=conv(3, 6), b=conv(3, 6), head=conv(6, 4), free="a b")
def cat_along_space(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(torch.cat([self.a(x), self.b(x)], 2)))


@case(a=conv(3, 6), b=conv(3, 6), head=conv(6, 4), free="a b")
def cat_along_the_batch(self: Any, x: Tensor) -> Tensor:
    y = self.head(F.relu(torch.cat([self.a(x), self.b(x)], 0)))
    first, second = y.chunk(2)
    return first + second


@case(a=conv(3, 8), b=conv(3, 6), add=conv(3, 14), head=conv(14, 4), free="a b add")
def cat_plus(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(torch.cat([self.a(x), self.b(x)], 1) + self.add(x)))


@case(a=conv(3, 8), b=conv(3, 8), head=conv(16, 4), free="a b")
def cat_of_group_views(self: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    a, b = self.a(x).view(n, 2, 4, h, w), self.b(x).view(n, 2, 4, h, w)
    return self.head(F.relu(torch.cat([a, b], 1)).reshape(n, 16, h, w))


@case(a=conv(3, 8), b=conv(3, 8), head=conv(16, 4), free="a b")
def cat_of_views_along_the_last(self: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    a, b = self.a(x).view(n, 2, 4, h, w), self.b(x).view(n, 2, 4, h, w)
    return self.head(torch.cat([a, b], 2).flatten(1, 2))


@case(stem=conv(3, 4), body=conv(4, 8, stride=2), head=conv(8, 4), free="stem body")
def zero_padded_shortcut(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)
    return self.head(F.relu(self.body(x) + shortcut))


@case(stem=conv(3, 4), pad=make(nn.ConstantPad3d, (0, 0, 0, 0, 1, 2), 0.5), head=conv(7, 4), free="stem")
def padded_with_a_constant(self: Any, x: Tensor) -> Tensor:
    return self.head(self.pad(self.stem(x)))


@case(stem=conv(3, 6), pad=make(nn.ReflectionPad2d, 1), head=conv(6, 4, padding=0), free="stem")
def padded_in_space(self: Any, x: Tensor) -> Tensor:
    return self.head(F.pad(self.pad(self.stem(x)), [1, 0, 0, 1], mode="replicate"))


@case(stem=conv(3, 6), head=conv(8, 4), pinned={"stem": "circular"})
def padded_in_a_circle(self: Any, x: Tensor) -> Tensor:
    return self.head(F.pad(self.stem(x), (0, 0, 0, 0, 1, 1), mode="circular"))


@case(stem=conv(3, 6), head=conv(4, 4), pinned={"stem": "padding"})
def cropped_by_padding(self: Any, x: Tensor) -> Tensor:
    return self.head(F.pad(self.stem(x), (0, 0, 0, 0, -1, -1)))


@case(a=conv(3, 6), b=conv(3, 6), head=conv(6, 4), free="a b")
def unbind_of_stack(self: Any, x: Tensor) -> Tensor:
    a, b = torch.stack([self.a(x), self.b(x)], dim=1).unbind(1)
    return self.head(a * torch.sigmoid(b))


@case(a=conv(3, 6), b=conv(3, 6), head=conv(12, 4), free="a b")
def stack_interleaves(self: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    return self.head(torch.stack([self.a(x), self.b(x)], dim=2).view(n, -1, h, w))


@case(a=conv(3, 6), b=conv(3, 6), head=conv(6, 4), free="a b")
def sum_of_stack(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(torch.stack([self.a(x), self.b(x)]).sum(0)))


@case(
    stem=conv(3, 8, 2, stride=2, padding=0),
    token=lambda: nn.Parameter(torch.randn(1, 1, 8)),
    place=lambda: nn.Parameter(torch.randn(1, 17, 8)),
    norm=make(nn.LayerNorm, 8),
    head=make(nn.Linear, 8, 4),
    free="stem",
)
def class_token(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x).flatten(2).transpose(1, 2)
    x = self.norm(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place)
    return self.head(x[:, 0] + x.mean(1))


@case(a=conv(3, 4), dw=conv(4, 4, groups=4), head=conv(6, 4), free="a")
def ghost(self: Any, x: Tensor) -> Tensor:
    a = F.relu(self.a(x))
    return self.head(torch.cat([a, F.relu(self.dw(a))], dim=1)[:, :6, :, :])


@case(stem=conv(3, 6), grid=parameter(1, 4, 8, 8), head=conv(10, 4), free="stem")
def coordinates_appended(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    return self.head(torch.cat([x, self.grid.expand(x.shape[0], -1, -1, -1)], 1))


@case(stem=conv(3, 8), head=conv(8, 4), free="stem")
def pieces_joined_as_they_come(self: Any, x: Tensor) -> Tensor:
    return self.head(torch.cat(self.stem(x).chunk(2, 1)[::-1], 1))
