"""Gates: what is computed from a feature map and multiplied with it."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arch_case import architecture, conv_bn


class SEByLinear(nn.Module):
    """Squeeze and excite, as its authors write it."""

    def __init__(self, channel: int, reduction: int = 4) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channel // reduction, channel, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class SEByConv(nn.Module):
    """The same by 1x1 convolutions, as in EfficientNet."""

    def __init__(self, channel: int, reduction: int = 4) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channel, channel // reduction, 1)
        self.conv_expand = nn.Conv2d(channel // reduction, channel, 1)

    def forward(self, x: Tensor) -> Tensor:
        x_se = x.mean((2, 3), keepdim=True)
        x_se = self.conv_expand(F.silu(self.conv_reduce(x_se), inplace=True))
        return x * x_se.sigmoid()


@architecture()
class SqueezeExcite(nn.Module):
    """Both spellings in residual blocks (Hu et al., arXiv 1709.01507)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.conv1, self.se1 = conv_bn(8, 8, relu=False), SEByLinear(8)
        self.conv2, self.se2 = conv_bn(8, 8, relu=False), SEByConv(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.se1(self.conv1(x)))
        return self.head(F.relu(x + self.se2(self.conv2(x))))


class ECALayer(nn.Module):
    """A 1-D convolution over the channels of the pooled map."""

    def __init__(self, channels: int, gamma: int = 2, b: int = 1) -> None:
        super().__init__()
        t = int(abs((math.log2(channels) + b) / gamma))
        k = max(t if t % 2 else t + 1, 3)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size=k, padding=(k - 1) // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * self.sigmoid(y).expand_as(x)


@architecture(
    whole={
        "conv1.0": "a convolution needs one channel per position",
        "eca.conv": "an axis of one channel",
        "head": "the model's output",
    }
)
class EfficientChannelAttention(nn.Module):
    """A channel's gate depends on its neighbours, so the order and number of channels matter (arXiv 1910.03151)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.conv1, self.eca = conv_bn(8, 8), ECALayer(8)
        self.conv2 = conv_bn(8, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv2(self.eca(self.conv1(self.stem(x)))))


class ChannelGate(nn.Module):
    """One perceptron for the averages and the maxima."""

    def __init__(self, gate_channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(gate_channels, 3), nn.ReLU(), nn.Linear(3, gate_channels))

    def forward(self, x: Tensor) -> Tensor:
        channel_att_sum = None
        for pool_type in ("avg", "max"):
            size = (x.size(2), x.size(3))
            pooled = F.avg_pool2d(x, size, stride=size) if pool_type == "avg" else F.max_pool2d(x, size, stride=size)
            raw = self.mlp(pooled)
            channel_att_sum = raw if channel_att_sum is None else channel_att_sum + raw
        assert channel_att_sum is not None
        scale = torch.sigmoid(channel_att_sum).unsqueeze(2).unsqueeze(3).expand_as(x)
        return x * scale


class SpatialGate(nn.Module):
    """A map of positions, from the maximum and the mean over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1))

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.spatial(pooled))


@architecture(
    whole={
        "conv.0": "max mixes the channels",
        "cbam.0.mlp.3": "max mixes the channels",
        "cbam.1.spatial.0": "one channel is broadcast over many",
        "head": "the model's output",
    }
)
class ConvolutionalBlockAttention(nn.Module):
    """CBAM (Woo et al., arXiv 1807.06521): the spatial gate is the maximum and mean over all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.conv = conv_bn(8, 8)
        self.cbam = nn.Sequential(ChannelGate(8), SpatialGate())
        self.body = conv_bn(8, 6)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.cbam(self.conv(self.stem(x)))))


@architecture(whole={"psi.0": "one channel is broadcast over many", "head": "the model's output"})
class GatedSpatialAttention(nn.Module):
    """Attention gate of Attention U-Net: a map of positions by convolutions (Oktay et al., arXiv 1804.03999)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.deep = conv_bn(8, 10, stride=2)
        self.w_g = conv_bn(10, 6, 1, relu=False)
        self.w_x = conv_bn(8, 6, 1, relu=False)
        self.psi = nn.Sequential(nn.Conv2d(6, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())
        self.head = nn.Conv2d(18, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        g = F.interpolate(self.deep(x), size=x.shape[2:], mode="bilinear", align_corners=False)
        gated = x * self.psi(F.relu(self.w_g(g) + self.w_x(x)))
        return self.head(torch.cat((gated, g), 1))


@architecture()
class SelectiveKernel(nn.Module):
    """SKNet's choice between kernel sizes by a softmax over branches (Li et al., arXiv 1903.06586)."""

    def __init__(self, branches: int = 2) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.convs = nn.ModuleList([conv_bn(8, 8, 3 + 2 * i, groups=2, relu=False) for i in range(branches)])
        self.fc = nn.Linear(8, 4)
        self.fcs = nn.ModuleList([nn.Linear(4, 8) for _ in range(branches)])
        self.softmax = nn.Softmax(dim=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        feats = torch.cat([conv(x).unsqueeze_(dim=1) for conv in self.convs], dim=1)
        fea_z = self.fc(torch.sum(feats, dim=1).mean(-1).mean(-1))
        vectors = torch.cat([fc(fea_z).unsqueeze_(dim=1) for fc in self.fcs], dim=1)
        vectors = self.softmax(vectors).unsqueeze(-1).unsqueeze(-1)
        return self.head((feats * vectors).sum(dim=1))


@architecture()
class SplitAttention(nn.Module):
    """ResNeSt: the splits of a grouped convolution, weighed by a softmax over them (Zhang et al., arXiv 2004.08955)."""

    def __init__(self, channels: int = 8, radix: int = 2) -> None:
        super().__init__()
        self.radix, self.channels = radix, channels
        self.stem = conv_bn(3, 8)
        self.conv = conv_bn(8, channels * radix, groups=radix)
        self.fc1 = nn.Conv2d(channels, 6, 1)
        self.bn1 = nn.BatchNorm2d(6)
        self.fc2 = nn.Conv2d(6, channels * radix, 1)
        self.head = nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x))
        batch, rchannel = x.shape[:2]
        splits = torch.split(x, rchannel // self.radix, dim=1)
        gap = F.adaptive_avg_pool2d(sum(splits[1:], splits[0]), 1)
        atten = self.fc2(F.relu(self.bn1(self.fc1(gap))))
        atten = F.softmax(atten.view(batch, 1, self.radix, -1).transpose(1, 2), dim=1).reshape(batch, -1)
        attens = torch.split(atten.view(batch, -1, 1, 1), rchannel // self.radix, dim=1)
        return self.head(sum((a * s for a, s in zip(attens[1:], splits[1:], strict=True)), attens[0] * splits[0]))


class Encoding(nn.Module):
    """Positions are added to queries and keys, not to values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, width))

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        q = x + pos
        x = self.norm1(x + self.attn(q, q, x, need_weights=False)[0])
        return self.norm2(x + self.mlp(x))


class Decoding(nn.Module):
    """What is asked for attends to itself, and to what was encoded."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, width))

    def forward(self, x: Tensor, asked: Tensor, memory: Tensor, pos: Tensor) -> Tensor:
        q = x + asked
        x = self.norm1(x + self.own(q, q, x, need_weights=False)[0])
        x = self.norm2(x + self.cross(x + asked, memory + pos, memory, need_weights=False)[0])
        return self.norm3(x + self.mlp(x))


@architecture()
class DetectionTransformer(nn.Module):
    """Carion et al., End-to-End Object Detection with Transformers (arXiv 2005.12872), a layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=4, padding=1)
        self.pos = nn.Parameter(torch.randn(1, 16, 16))
        self.asked = nn.Parameter(torch.randn(1, 5, 16))
        self.encoder, self.decoder = Encoding(16, 2), Decoding(16, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.encoder(F.adaptive_avg_pool2d(self.stem(x), 4).flatten(2).transpose(1, 2), self.pos)
        start = torch.zeros_like(self.asked).expand(x.size(0), -1, -1)
        return self.head(self.decoder(start, self.asked, memory, self.pos))
