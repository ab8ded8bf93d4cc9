"""Attention of four heads in many spellings, and which tensors have something of every head."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .head_case import APART, FUSED, HEAD_CASES, HEADS, INSIDE, QKV, WIDTH, Attention, N, heads

__all__ = ["HEADS", "HEAD_CASES", "INSIDE", "WIDTH", "Attention", "N"]


@heads(**FUSED)
class Fused(Attention):
    """ViT (timm)."""


@heads(**FUSED)
class HeadsFirst(Attention):
    """Heads in front of queries, keys and values."""

    def split(self, x: Tensor) -> Any:
        return self.qkv(x).view(*x.shape[:2], HEADS, 3, -1).permute(3, 0, 2, 1, 4)


@heads(**FUSED)
class Chunks(Attention):
    """Queries, keys and values of a head side by side."""

    def split(self, x: Tensor) -> Any:
        return self.qkv(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2).chunk(3, -1)


@heads(**FUSED)
class HeadsLast(Attention):
    """Channels of one head are apart: (channel, head)."""

    def split(self, x: Tensor) -> Any:
        return (y.view(*x.shape[:2], INSIDE, HEADS).permute(0, 3, 1, 2) for y in self.qkv(x).chunk(3, -1))

    def join(self, y: Tensor) -> Tensor:
        return y.permute(0, 2, 3, 1).flatten(2)


@heads(**APART, proj__weight={1: INSIDE})
class Apart(Attention):
    """A projection each, scaled dot product, heads merged with the batch."""

    def __init__(self) -> None:
        super().__init__()
        del self.qkv
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            f(x).view(b, n, HEADS, -1).transpose(1, 2).reshape(b * HEADS, n, -1) for f in (self.q, self.k, self.v)
        )
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return self.head(self.proj(y.view(b, HEADS, n, -1).transpose(1, 2).reshape(b, n, -1)))


@heads(**FUSED, scale={0: 1}, cpb__2__weight={0: 1}, cpb__2__bias={0: 1})
class SwinV2(Attention):
    """Cosine attention with a scale per head, and a bias by position that a small network computes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(HEADS, 1, 1) + 1)
        self.cpb = nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, HEADS))
        self.register_buffer("table", torch.randn(1, 3, 4, 2))
        self.register_buffer("index", torch.arange(N * N) % 12)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        table: Any = self.table
        index: Any = self.index
        n = q.shape[2]
        cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        cosine = cosine * torch.clamp(self.scale, max=math.log(100.0)).exp()
        bias = self.cpb(table).view(-1, HEADS)[index].view(n, n, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        return cosine + 16 * torch.sigmoid(bias)


@heads(**FUSED, table={1: 1})
class Windows(Attention):
    """Swin: a table of biases, and a mask that differs from window to window."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, HEADS))
        self.register_buffer("index", torch.arange(9) % 11)
        self.register_buffer("mask", torch.randn(2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        return super().forward(x.view(b * 2, n // 2, c)).view(b, n, -1)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        index: Any = self.index
        mask: Any = self.mask
        n = q.shape[2]
        bias = self.table[index].view(n, n, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        scores = super().scores(q, k) + bias
        scores = scores.view(q.shape[0] // 2, 2, HEADS, n, n) + mask.unsqueeze(1).unsqueeze(0)
        return scores.view(-1, HEADS, n, n)


@heads(**FUSED, bias={1: 1})
class MaskedDotProduct(Attention):
    """A learnt mask of a scaled dot product, with values for every head."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, HEADS, N, N))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.head(self.proj(self.join(F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias))))


@heads(
    **FUSED,
    before__weight={0: 1, 1: 1},
    before__bias={0: 1},
    after__weight={0: 1, 1: 1},
    after__bias={0: 1},
)
class TalkingHeads(Attention):
    """1x1 convolutions over heads, before and behind the softmax: heads are read there, and others come out."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(HEADS, HEADS, 1), nn.Conv2d(HEADS, HEADS, 1)

    def weigh(self, scores: Tensor) -> Tensor:
        return self.after(self.before(scores).softmax(-1))


@heads(qkv__weight={0: 18}, qkv__bias={0: 18}, proj__weight={1: 6})
class Rotary(Attention):
    """Halves of the channels of a head are rotated by fixed tables."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 72), nn.Linear(24, WIDTH)
        self.register_buffer("cos", torch.randn(N, 6))
        self.register_buffer("sin", torch.randn(N, 6))

    def split(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, 6).permute(2, 0, 3, 1, 4).unbind(0)
        return self.rotated(q), self.rotated(k), v

    def rotated(self, x: Tensor) -> Tensor:
        first, second = x[..., :3], x[..., 3:]
        turned = torch.cat((-second, first), -1)
        cos: Any = self.cos
        sin: Any = self.sin
        return x * cos + turned * sin


@heads(**FUSED)
class NormedInside(Attention):
    """Norms over the channels of every head, one for all heads, and one written out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(INSIDE)
        self.weight = nn.Parameter(torch.rand(INSIDE) + 0.5)

    def split(self, x: Tensor) -> Any:
        q, k, v = super().split(x)
        k = k * torch.rsqrt(k.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        return self.norm(q), k, v


@heads(**FUSED, temperature={0: 1})
class CrossCovariance(Attention):
    """XCiT: channels attend to channels of the same head, at a temperature; that of a removed head is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.rand(HEADS, 1, 1) + 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.transpose(-2, -1) for y in self.split(x))
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) / self.temperature).softmax(-1)
        return self.head(self.proj((weights @ v).permute(0, 3, 1, 2).flatten(2)))


@heads(**FUSED, gamma={1: 1})
class ScaledHeads(Attention):
    """A factor for what every head gives."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(1, HEADS, 1, 1) + 0.5)

    def join(self, y: Tensor) -> Tensor:
        return super().join(y * self.gamma)


@heads(q__weight={0: INSIDE}, q__bias={0: INSIDE}, proj__weight={1: INSIDE})
class OneKeyForAll(Attention):
    """Multi-query attention: all heads share keys and values."""

    def __init__(self) -> None:
        super().__init__()
        del self.qkv
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * INSIDE)

    def split(self, x: Tensor) -> Any:
        k, v = self.kv(x).unsqueeze(1).chunk(2, -1)
        return self.q(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2), k, v


@heads(**QKV, value={0: 1}, out={0: 1})
class WeightsPerHead(Attention):
    """Products with a matrix for every head, the last of them added up over heads."""

    def __init__(self) -> None:
        super().__init__()
        del self.proj
        self.value = nn.Parameter(torch.randn(HEADS, INSIDE, 3) / 2)
        self.out = nn.Parameter(torch.randn(HEADS, 3, WIDTH) / 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        y = self.weigh(self.scores(q, k)) @ torch.einsum("bhnd,hde->bhne", v, self.value)
        return self.head(torch.einsum("bhne,hec->bnc", y, self.out))


@heads(values__weight={0: INSIDE}, values__bias={0: INSIDE}, out={0: 1})
class AddedUp(Attention):
    """No attention at all: rows of channels, each with a matrix of its own, added up."""

    def __init__(self) -> None:
        super().__init__()
        del self.qkv, self.proj
        self.values, self.out = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(HEADS, INSIDE, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.einsum("bnhd,hdc->bnc", self.values(x).unflatten(-1, (HEADS, -1)), self.out))


@heads(**FUSED)
class Linearised(Attention):
    """Keys times values first."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        return self.head(self.proj(self.join(q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v))))


@heads(**FUSED)
class Pooled(Attention):
    """MViT: one convolution, norm or slope for all heads, which are merged with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Conv1d(INSIDE, INSIDE, 3, padding=1, groups=INSIDE)
        self.norm, self.slope = nn.BatchNorm1d(INSIDE), nn.PReLU(INSIDE)

    def split(self, x: Tensor) -> Any:
        return (self.merged(f, y) for f, y in zip((self.pool, self.norm, self.slope), super().split(x), strict=True))

    def merged(self, function: nn.Module, x: Tensor) -> Tensor:
        b, h, n, d = x.shape
        return function(x.transpose(2, 3).reshape(b * h, d, n)).reshape(b, h, d, -1).transpose(2, 3)


@heads(**FUSED)
class LayersInside(Attention):
    """One layer for all heads, and one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.matrix = nn.Linear(INSIDE, INSIDE), nn.Parameter(torch.randn(INSIDE, INSIDE))

    def split(self, x: Tensor) -> Any:
        q, k, v = super().split(x)
        return q @ self.matrix, k, self.inner(v)


@heads(
    q__weight={0: INSIDE},
    q__bias={0: INSIDE},
    kv__weight={0: 2 * INSIDE},
    kv__bias={0: 2 * INSIDE},
    proj__weight={1: INSIDE},
)
class OneQuery(Attention):
    """CaiT: only the class token asks."""

    def __init__(self) -> None:
        super().__init__()
        del self.qkv
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))

    def split(self, x: Tensor) -> Any:
        b, n, _ = x.shape
        q = self.q(self.token + x[:, :1]).reshape(b, 1, HEADS, -1).permute(0, 2, 1, 3)
        k, v = self.kv(x).reshape(b, n, 2, HEADS, -1).permute(2, 0, 3, 1, 4)
        return q, k, v


@heads(**FUSED)
class WeightsReturned(Attention):
    """The mean of the weights over heads matters too: a figure of the heads that are kept."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        weights = self.weigh(self.scores(q, k))
        return self.head(self.proj(self.join(weights @ v))) * weights.mean(1).mean(-1, keepdim=True)


@heads(attn__in_proj_weight={0: 3 * INSIDE}, attn__in_proj_bias={0: 3 * INSIDE}, attn__out_proj__weight={1: INSIDE})
class OfTorch(nn.Module):
    """``nn.MultiheadAttention``."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.head = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attn(x, x, x, need_weights=False)[0])


@heads(**FUSED, norm__weight={0: INSIDE}, norm__bias={0: INSIDE}, groups__weight={0: INSIDE}, groups__bias={0: INSIDE})
class NormedOutside(Attention):
    """RetNet, BEiT-3: a group norm of heads, and a layer norm over all of their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.groups = nn.LayerNorm(WIDTH), nn.GroupNorm(HEADS, WIDTH)

    def join(self, y: Tensor) -> Tensor:
        y = super().join(y)
        return self.norm(self.groups(y.flatten(0, 1)).view(y.shape))


@heads(**FUSED)
class Unmerged(Attention):
    """The batch size is what is left of merged heads."""

    def join(self, y: Tensor) -> Tensor:
        y = y.reshape(y.shape[0] * HEADS, y.shape[2], -1)
        y = y.tanh()
        return y.reshape(y.shape[0] // HEADS, HEADS, y.shape[1], -1).transpose(1, 2).flatten(2)
