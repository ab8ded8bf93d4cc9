"""Splits, shuffles, slices, reshapes: what moves channels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .zoo_case import case, conv, make


@case(stem=conv(3, 12), head=conv(12, 4), free="stem")
def shuffle_by_views(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    n, c, h, w = x.shape
    return self.head(x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, h, w))


@case(
    stem=conv(3, 12),
    a=conv(12, 12, groups=3),
    shuffle=make(nn.ChannelShuffle, 3),
    b=conv(12, 12, groups=3),
    head=conv(12, 4),
    free="stem a b",
)
def shuffle_between_groups(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.b(self.shuffle(F.relu(self.a(F.relu(self.stem(x))))))))


@case(stem=conv(3, 8), a=conv(4, 4), head=conv(8, 4), free="stem a")
def shuffle_unit(self: Any, x: Tensor) -> Tensor:
    x1, x2 = F.relu(self.stem(x)).chunk(2, dim=1)
    x = torch.cat((x1, F.relu(self.a(x2))), 1)
    n, c, h, w = x.size()
    x = torch.transpose(x.view(n, 2, c // 2, h, w), 1, 2).contiguous().view(n, -1, h, w)
    y1, y2 = x.chunk(2, dim=1)
    return self.head(torch.cat([y1, torch.sigmoid(y2)], 1))


@case(stem=conv(3, 8), a=conv(4, 6), head=conv(10, 4), free="stem a")
def shuffle_by_the_batch(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    b, c, h, w = x.shape
    x = x.reshape(b * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
    return self.head(torch.cat([x[0], F.relu(self.a(x[1]))], 1))


@case(stem=conv(3, 9), a=conv(2, 4), b=conv(7, 4), head=conv(8, 4), free="stem a b")
def split_into_unequal_parts(self: Any, x: Tensor) -> Tensor:
    x, y = torch.split(F.relu(self.stem(x)), [2, 7], dim=1)
    return self.head(torch.cat([self.a(x), self.b(y)], 1))


@case(stem=conv(3, 9), a=conv(4, 4), b=conv(1, 4), head=conv(4, 4), free="stem a")
def split_with_a_rest(self: Any, x: Tensor) -> Tensor:
    x, y, z = F.relu(self.stem(x)).split(4, 1)
    return self.head(self.a(x) + self.a(y) + self.b(z))


@case(stem=conv(3, 8), head=conv(4, 4), free="stem")
def chunk_and_gate(self: Any, x: Tensor) -> Tensor:
    x, gate = self.stem(x).chunk(2, dim=-3)
    return self.head(x * torch.sigmoid(gate))


@case(stem=conv(3, 9), a=conv(3, 4), b=conv(4, 4), c=conv(2, 4), head=conv(4, 4), free="stem a b c")
def tensor_split(self: Any, x: Tensor) -> Tensor:
    x, y, z = torch.tensor_split(F.relu(self.stem(x)), (3, 7), dim=1)
    return self.head(self.a(x) + self.b(y) + self.c(z))


@case(stem=conv(3, 12), a=conv(4, 4), b=conv(4, 4), head=conv(12, 4), free="stem a b")
def hierarchical_split(self: Any, x: Tensor) -> Tensor:
    x, y, z = F.relu(self.stem(x)).split(4, 1)
    y = F.relu(self.a(y))
    z = F.relu(self.b(y + z))
    return self.head(torch.cat([x, y, z], 1))


@case(stem=conv(3, 8), head=conv(2, 4), up=make(nn.PixelShuffle, 2), free="stem")
def pixel_shuffle(self: Any, x: Tensor) -> Tensor:
    return self.head(self.up(F.relu(self.stem(x))))


@case(stem=conv(3, 4), head=conv(16, 4), free="stem")
def pixel_unshuffle(self: Any, x: Tensor) -> Tensor:
    return self.head(F.pixel_unshuffle(F.relu(self.stem(x)), 2))


@case(stem=conv(3, 4), head=conv(16, 4), free="stem")
def space_to_depth_by_slices(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    corners = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
    return self.head(torch.cat(corners, 1))


@case(stem=conv(3, 8), head=conv(8, 4), body=conv(8, 8), free="stem body")
def rolled(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    return self.head(self.body(x) + torch.roll(x, 3, 1).roll((1, 2), (2, 3)))


@case(stem=conv(3, 8), head=conv(8, 4), free="stem")
def rolled_without_sum(self: Any, x: Tensor) -> Tensor:
    return self.head(torch.roll(self.stem(x), -3, dims=1))


@case(stem=conv(3, 8), head=conv(8, 4), free="stem")
def flipped(self: Any, x: Tensor) -> Tensor:
    return self.head(torch.flip(self.stem(x), [1]).flip(2, 3))


@case(stem=conv(3, 4), head=conv(12, 4), free="stem")
def repeated(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x).repeat(1, 3, 1, 1))


@case(stem=conv(3, 4), head=conv(8, 4), free="stem")
def repeat_interleaved(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x).repeat_interleave(2, dim=1))


@case(stem=conv(3, 8), head=conv(8, 4), free="stem")
def expanded(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    pooled = x.mean((2, 3), keepdim=True)
    return self.head(x * pooled.expand(-1, -1, x.shape[2], x.shape[3]) + pooled.expand(x.shape))


@case(stem=conv(3, 1), head=conv(8, 4), pinned={"stem": "broadcast"})
def one_channel_expanded(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x).expand(-1, 8, -1, -1))


@case(stem=conv(3, 9), head=conv(5, 4), free="stem")
def slice_with_a_step(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x)[:, ::2])


@case(stem=conv(3, 9), head=conv(6, 4), free="stem")
def slice_in_the_middle(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x)[:, 2:-1, 1:, :-1])


@case(stem=conv(3, 9), head=conv(4, 4), free="stem")
def narrowed(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x).narrow(1, 3, 4))


@case(stem=conv(3, 9), head=conv(4, 4), free="stem")
def index_list(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x)[:, [5, 0, 0, 7]])


@case(stem=conv(3, 9), head=conv(4, 4), order=lambda: torch.tensor([5, 0, 8, 7]), free="stem")
def index_buffer(self: Any, x: Tensor) -> Tensor:
    return self.head(torch.index_select(self.stem(x), 1, self.order))


@case(stem=conv(3, 9), head=conv(4, 4), order=lambda: torch.tensor([5, 0, 8, 7]), free="stem")
def indexed_by_buffer(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x)[:, self.order])


@case(stem=conv(3, 9), head=conv(1, 4))
def one_channel_picked(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x)[:, 4].unsqueeze(1))


@case(stem=conv(3, 6), head=conv(1, 4), pinned={"stem": "picked by its index"})
def channels_unbound(self: Any, x: Tensor) -> Tensor:
    a, b, c, d, e, f = self.stem(x).unbind(1)
    return self.head((a * b + c * d + e * f).unsqueeze(1))


@case(stem=conv(3, 8), head=make(nn.Linear, 8, 4), free="stem")
def tokens(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    b, c, h, w = x.shape
    return self.head(x.reshape(b, c, h * w).permute(0, 2, 1)).mean(1)


@case(stem=conv(3, 8), a=make(nn.Linear, 8, 8), head=conv(8, 4), free="stem a")
def tokens_and_back(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    b, c, h, w = x.shape
    y = self.a(x.flatten(2).transpose(1, 2)).movedim(-1, 1).reshape(b, c, h, w)
    return self.head(x + y)


@case(stem=conv(3, 8), a=make(nn.Linear, 64, 64), head=conv(8, 4), free="stem")
def mixing_of_positions(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    return self.head(self.a(x.flatten(2)).unflatten(2, (8, 8)))


@case(stem=conv(3, 4), a=make(nn.Linear, 32, 32), head=conv(4, 4), free="stem")
def linear_over_channels_and_columns(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    y = self.a(x.permute(0, 2, 1, 3).flatten(2))
    return self.head(x) + y.mean((1, 2))[:, None, None, None]


@case(stem=conv(3, 8), head=make(nn.Linear, 4, 4))
def channels_folded_into_space(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    return self.head(x.reshape(x.shape[0], -1, 4)).sum(1)


@case(stem=conv(3, 8), head=conv(4, 4), free="stem")
def group_means(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    n, c, h, w = x.shape
    return self.head(x.view(n, 4, c // 4, h, w).mean(2))


@case(stem=conv(3, 12), head=conv(12, 4), free="stem")
def shuffle_of_shuffle(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    n, c, h, w = x.shape
    x = x.view(n, 3, 4, h, w).permute(0, 2, 1, 3, 4).reshape(n, c, h, w)
    return self.head(x.reshape(n, 2, 6, h, w).transpose(1, 2).reshape_as(x))


@case(stem=conv(3, 12), head=conv(12, 4), body=conv(12, 12, groups=4), free="stem body")
def activation_inside_a_shuffle(self: Any, x: Tensor) -> Tensor:
    x = self.body(F.relu(self.stem(x)))
    n, c, h, w = x.shape
    x = F.relu(x.view(n, 4, 3, h, w)).transpose(1, 2)
    return self.head(x.reshape(n, c, h, w))


@case(stem=conv(3, 12), head=conv(6, 4), free="stem")
def half_of_a_shuffle(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    n, c, h, w = x.shape
    x = x.view(n, 2, c // 2, h, w).transpose(1, 2)
    return self.head(x[:, :, 1])


@case(stem=conv(3, 12), a=conv(4, 4), head=conv(4, 4), free="stem a")
def groups_as_batch(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    n, c, h, w = x.shape
    y = self.a(x.view(n * 3, c // 3, h, w)).view(n, 3, -1, h, w)
    return self.head(y.sum(1))


@case(stem=conv(3, 12), head=conv(12, 4), free="stem")
def activation_after_a_transpose(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    n, c, h, w = x.shape
    x = F.relu(x.view(n, 3, 4, h, w).transpose(1, 2))
    return self.head(x.reshape(n, c, h, w))


@case(stem=conv(3, 12), head=conv(6, 4), free="stem")
def activation_of_a_part_of_rows(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    n, c, h, w = x.shape
    x = F.relu(x.view(n, 2, 6, h, w)[:, :, :3])
    return self.head(x.reshape(n, c // 2, h, w))


@case(stem=conv(3, 12), head=conv(12, 4), free="stem")
def sizes_of_a_transpose(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    y = x.unflatten(1, (3, 4)).transpose(1, 2)
    return self.head(y.reshape(y.shape[0], y.shape[1] * y.shape[2], 8, 8))


@case(stem=conv(3, 12), deep=conv(1, 1), head=conv(12, 4), free="stem")
def batch_times_a_literal(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    n = x.shape[0]
    return self.head(self.deep(x.view(n * 12, 1, 8, 8)).view(n, 12, 8, 8))


@case(stem=conv(3, 8), head=make(nn.Linear, 8, 4), free="stem")
def transposed_by_attribute(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x).flatten(2).mT).mean(1)


@case(stem=conv(3, 12), a=make(nn.Linear, 4, 6), head=make(nn.Linear, 6, 4), free="stem a")
def linear_on_rows(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x).mean((2, 3))
    return self.head(torch.tanh(self.a(x.view(-1, 3, 4)))).sum(1)


@case(
    stem=conv(3, 12),
    split=make(nn.Unflatten, 1, (3, 4)),
    merge=make(nn.Flatten, 1, 2),
    head=conv(12, 4),
    free="stem",
)
def shuffle_by_modules(self: Any, x: Tensor) -> Tensor:
    return self.head(self.merge(self.split(F.relu(self.stem(x))).transpose(1, 2)))


@case(
    stem=conv(3, 12), split=make(nn.Unflatten, 1, (3, 4)), merge=make(nn.Flatten, 1, 2), head=conv(12, 4), free="stem"
)
def rows_by_modules(self: Any, x: Tensor) -> Tensor:
    return self.head(self.merge(torch.tanh(self.split(self.stem(x)))))
