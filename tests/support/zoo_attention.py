"""Attention in many spellings: products of activations, heads, biases by position, windows."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .zoo_case import case, make

TOKENS = (2, 5, 12)


@case(TOKENS, qkv=make(nn.Linear, 12, 36), out=make(nn.Linear, 12, 12), head=make(nn.Linear, 12, 4), free="qkv out")
def self_attention(self: Any, x: Tensor) -> Tensor:
    b, n, c = x.shape
    q, k, v = self.qkv(x).reshape(b, n, 3, 3, c // 3).permute(2, 0, 3, 1, 4).unbind(0)
    attn = ((q @ k.transpose(-2, -1)) * (c // 3) ** -0.5).softmax(-1)
    return self.head(self.out((attn @ v).transpose(1, 2).reshape(b, n, c)))


@case(
    TOKENS,
    attn=make(nn.MultiheadAttention, 12, 3, batch_first=True),
    a=make(nn.Linear, 12, 12),
    head=make(nn.Linear, 12, 4),
    free="a",
)
def multihead_attention(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    return self.head(x + self.attn(x, x, x, need_weights=False)[0])


@case(
    TOKENS,
    attn=make(nn.MultiheadAttention, 12, 3, dropout=0.1),
    a=make(nn.Linear, 12, 12),
    head=make(nn.Linear, 12, 4),
    free="a",
)
def multihead_attention_with_dropout(self: Any, x: Tensor) -> Tensor:
    x = self.a(x).transpose(0, 1)
    return self.head((x + self.attn(x, x, x)[0]).transpose(0, 1))


@case(
    TOKENS,
    (2, 7, 12),
    attn=make(nn.MultiheadAttention, 12, 3, batch_first=True),
    a=make(nn.Linear, 12, 12),
    b=make(nn.Linear, 12, 12),
    head=make(nn.Linear, 12, 4),
    free="b",
)
def cross_attention(self: Any, x: Tensor, y: Tensor) -> Tensor:
    y = self.b(y)
    return self.head(self.attn(self.a(x), y, y, need_weights=False)[0])


@case(
    TOKENS,
    q=make(nn.Linear, 12, 8),
    k=make(nn.Linear, 12, 8),
    v=make(nn.Linear, 12, 6),
    head=make(nn.Linear, 6, 4),
    free="q k v",
)
def scaled_dot_product(self: Any, x: Tensor) -> Tensor:
    return self.head(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


@case(
    (2, 3, 5, 12),
    qkv=make(nn.Linear, 12, 36),
    merge=make(nn.Linear, 12, 12),
    head=make(nn.Linear, 12, 4),
    free="qkv merge",
)
def attention_by_einsum(self: Any, x: Tensor) -> Tensor:
    b, g, p, d = x.shape
    q, k, v = (y.reshape(b, g, p, 3, 4).permute(0, 1, 3, 2, 4) for y in self.qkv(x).chunk(3, -1))
    scores = torch.einsum("B G H I D, B G H J D -> B G H I J", q, k * d**-0.5)
    y = torch.einsum("B G H I J, B G H J D -> B G H I D", scores.softmax(-1), v)
    return self.head(self.merge(y.permute(0, 1, 3, 2, 4).reshape(b, g, p, d)))


@case(TOKENS, qk=make(nn.Linear, 12, 24), v=make(nn.Linear, 12, 12), head=make(nn.Linear, 12, 4), free="qk v")
def cosine_attention(self: Any, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k = self.qk(x).reshape(b, n, 2, 3, 4).permute(2, 0, 3, 1, 4)
    attn = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1)
    v = self.v(x).reshape(b, n, 3, 4).transpose(1, 2)
    return self.head((attn @ v).transpose(1, 2).reshape(b, n, 12))


@case(
    TOKENS,
    q=make(nn.Linear, 12, 8),
    k=make(nn.Linear, 12, 8),
    nq=make(nn.LayerNorm, 8),
    nk=make(nn.LayerNorm, 8),
    free="q k",
)
def normalised_queries_and_keys(self: Any, x: Tensor) -> Tensor:
    return self.nq(self.q(x)) @ self.nk(self.k(x)).transpose(1, 2)


class Positions(nn.Module):
    """Adds a bias by relative position, a row of a table for every head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(12, 36), nn.Linear(12, 4)
        self.table = nn.Parameter(torch.randn(9, 3))
        self.register_buffer("index", (torch.arange(5)[:, None] - torch.arange(5)[None] + 4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 3, 4).permute(2, 0, 3, 1, 4)
        index: Any = self.index
        bias = self.table[index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        y = (q.matmul(k.transpose(-2, -1)) / math.sqrt(4) + bias).softmax(-1).matmul(v)
        return self.head(y.transpose(1, 2).reshape(b, n, c))


@case(TOKENS, net=Positions, free="net.qkv")
def relative_positions(self: Any, x: Tensor) -> Tensor:
    return self.net(x)


def window(x: Tensor, size: int, qkv: Tensor, shift: list[int]) -> Tensor:
    """Attention inside windows, with sizes and a mask computed as Swin does: branches on shapes, writes in place."""
    b, h, w, c = x.shape
    pad = (size - h % size) % size
    x = F.pad(x, (0, 0, 0, pad, 0, pad))
    _, high, wide, _ = x.shape
    shift = shift.copy()
    if size >= high:
        shift[0] = 0
    count = (high // size) * (wide // size)
    if sum(shift) > 0:
        x = torch.roll(x, (-shift[0], -shift[0]), (1, 2))
    x = (
        x.view(b, high // size, size, wide // size, size, c)
        .permute(0, 1, 3, 2, 4, 5)
        .reshape(b * count, size * size, c)
    )
    q, k, v = F.linear(x, qkv).reshape(x.size(0), x.size(1), 3, 3, c // 3).permute(2, 0, 3, 1, 4)
    attn = (q * (c // 3) ** -0.5) @ k.transpose(-2, -1)
    if sum(shift) > 0:
        mask = x.new_zeros((high, wide))
        mask[: -shift[0]] = 1
        mask = mask.view(high // size, size, wide // size, size).permute(0, 2, 1, 3).reshape(count, size * size)
        mask = (mask.unsqueeze(1) - mask.unsqueeze(2)).masked_fill(mask.unsqueeze(1) != mask.unsqueeze(2), -100.0)
        attn = attn.view(x.size(0) // count, count, 3, x.size(1), x.size(1)) + mask.unsqueeze(1).unsqueeze(0)
        attn = attn.view(-1, 3, x.size(1), x.size(1))
    x = (attn.softmax(-1) @ v).transpose(1, 2).reshape(x.size(0), x.size(1), c)
    x = x.view(b, high // size, wide // size, size, size, c).permute(0, 1, 3, 2, 4, 5).reshape(b, high, wide, c)
    if sum(shift) > 0:
        x = torch.roll(x, (shift[0], shift[0]), (1, 2))
    return x[:, :h, :w, :].contiguous()


torch.fx.wrap("window")


class Windows(nn.Module):
    """Calls a function that the tracer does not look into."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 12), nn.Linear(12, 4)
        self.qkv = nn.Parameter(torch.randn(36, 12) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.permute(0, 2, 3, 1))
        return self.head(x + window(x, 4, self.qkv, [2, 2]))


@case((2, 3, 7, 7), net=Windows, free="net.embed")
def wrapped_windows(self: Any, x: Tensor) -> Tensor:
    return self.net(x)
