"""Mixers, sequences, restoration and tied weights: linear layers, 1-D convolutions, transposes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arch_case import architecture, conv_bn


class Skip(nn.Module):
    """x + fn(x)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


def conv_mixer(dim: int, depth: int, k: int, patch: int) -> nn.Sequential:
    """As in the paper's listing."""
    return nn.Sequential(
        nn.Conv2d(3, dim, patch, stride=patch),
        nn.GELU(),
        nn.BatchNorm2d(dim),
        *[
            nn.Sequential(
                Skip(nn.Sequential(nn.Conv2d(dim, dim, k, groups=dim, padding="same"), nn.GELU(), nn.BatchNorm2d(dim))),
                nn.Conv2d(dim, dim, 1),
                nn.GELU(),
                nn.BatchNorm2d(dim),
            )
            for _ in range(depth)
        ],
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


@architecture((2, 3, 16, 16))
class ConvMixer(nn.Module):
    """Patches are all you need (Trockman and Kolter, arXiv 2201.09792)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv_mixer(8, 2, 5, 2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class MixerBlock(nn.Module):
    """Tokens are mixed, then channels."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.norm1, self.token_mixing = nn.LayerNorm(dim, eps=1e-6), Mlp(tokens, 6)
        self.norm2, self.channel_mixing = nn.LayerNorm(dim, eps=1e-6), Mlp(dim, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixing(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mixing(self.norm2(x))


# Token mixing writes to positions, which are those of the image.
TOKENS = "combined by add with"


@architecture(
    (2, 3, 16, 16),
    whole={"blocks.0.token_mixing.fc2": TOKENS, "blocks.1.token_mixing.fc2": TOKENS, "head": "the model's output"},
)
class MlpMixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al., arXiv 2105.01601)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.blocks = nn.ModuleList([MixerBlock(16, 8) for _ in range(2)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class Swish(nn.Module):
    """x sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class ConvolutionModule(nn.Module):
    """Pointwise convolution, gate, depthwise convolution over time, and back."""

    def __init__(self, channels: int, kernel: int = 5) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(channels)
        self.pointwise_conv1 = nn.Conv1d(channels, 2 * channels, 1)
        self.depthwise_conv = nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2, groups=channels)
        self.norm = nn.BatchNorm1d(channels)
        self.activation = Swish()
        self.pointwise_conv2 = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x).transpose(1, 2)
        x = F.glu(self.pointwise_conv1(x), dim=1)
        x = self.activation(self.norm(self.depthwise_conv(x)))
        return self.dropout(self.pointwise_conv2(x).transpose(1, 2))


@architecture((2, 16, 5))
class Conformer(nn.Module):
    """Half-step feed-forward layers around a convolution module (Gulati et al., arXiv 2005.08100)."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(5, d)
        self.ffns = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 16), nn.SiLU(), nn.Linear(16, d)) for _ in range(2)]
        )
        self.conv = ConvolutionModule(d)
        self.final = nn.LayerNorm(d)
        self.head = nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + 0.5 * self.ffns[0](x)
        x = x + self.conv(x)
        x = x + 0.5 * self.ffns[1](x)
        return self.head(self.final(x))


@architecture((2, 1, 64), whole={"fc1": "the model's output"})
class AudioM5(nn.Module):
    """A network for raw waveforms (Dai et al., arXiv 1610.00087), as in PyTorch's tutorial."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1, self.pool1 = nn.Conv1d(1, width, 8, stride=2), nn.BatchNorm1d(width), nn.MaxPool1d(2)
        self.conv2, self.bn2, self.pool2 = nn.Conv1d(width, 6, 3), nn.BatchNorm1d(6), nn.MaxPool1d(2)
        self.fc1 = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(F.relu(self.bn1(self.conv1(x))))
        x = self.pool2(F.relu(self.bn2(self.conv2(x))))
        x = F.avg_pool1d(x, x.shape[-1])
        x = self.fc1(x.permute(0, 2, 1))
        return F.log_softmax(x, dim=2)


@architecture((2, 1, 64), whole={"end": "the model's output"})
class WaveNet(nn.Module):
    """Dilated causal convolutions with gates; the layers' skips are summed (van den Oord et al., arXiv 1609.03499)."""

    def __init__(self, c: int = 6) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, c, 1)
        self.filters = nn.ModuleList([nn.Conv1d(c, c, 2, dilation=2**i, padding=2**i) for i in range(3)])
        self.gates = nn.ModuleList([nn.Conv1d(c, c, 2, dilation=2**i, padding=2**i) for i in range(3)])
        self.residuals = nn.ModuleList([nn.Conv1d(c, c, 1) for _ in range(3)])
        self.skips = nn.ModuleList([nn.Conv1d(c, 8, 1) for _ in range(3)])
        self.end = nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        skip: Any = 0
        for i, (f, g) in enumerate(zip(self.filters, self.gates, strict=True)):
            y = torch.tanh(f(x)) * torch.sigmoid(g(x))
            y = y[:, :, : -(2**i)]
            skip = self.skips[i](y) + skip
            x = self.residuals[i](y) + x
        return self.end(F.relu(skip))


class ResBlock(nn.Module):
    """EDSR's block: no norms, and a small factor."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(n, n, 3, padding=1), nn.ReLU(True), nn.Conv2d(n, n, 3, padding=1))
        self.res_scale = 0.1

    def forward(self, x: Tensor) -> Tensor:
        res = self.body(x).mul(self.res_scale)
        res += x
        return res


class MeanShift(nn.Conv2d):
    """A frozen 1x1 convolution that adds a constant."""

    def __init__(self, sign: int = -1) -> None:
        super().__init__(3, 3, kernel_size=1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias = nn.Parameter(sign * torch.tensor([0.4, 0.5, 0.6]))
        for p in self.parameters():
            p.requires_grad = False


@architecture(whole={"add_mean": "the model's output"})
class SuperResolution(nn.Module):
    """EDSR: a long skip, pixel shuffle, and means taken out by frozen 1x1 convolutions (arXiv 1707.02921)."""

    def __init__(self, n: int = 6) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = MeanShift(), MeanShift(1)
        self.head = nn.Conv2d(3, n, 3, padding=1)
        self.body = nn.Sequential(ResBlock(n), ResBlock(n), nn.Conv2d(n, n, 3, padding=1))
        self.tail = nn.Sequential(nn.Conv2d(n, 4 * n, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(n, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.sub_mean(x))
        res = self.body(x)
        res += x
        return self.add_mean(self.tail(res))


class SimpleGate(nn.Module):
    """One half times the other."""

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return x1 * x2


@architecture(whole={"ending": "combined by add with the model's input"})
class NAFBlock(nn.Module):
    """NAFNet: gates by halves, channel attention without an activation, learned scales (arXiv 2204.04676)."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.intro = nn.Conv2d(3, c, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(1, c), nn.GroupNorm(1, c)
        self.conv1 = nn.Conv2d(c, 2 * c, 1)
        self.conv2 = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1))
        self.conv3 = nn.Conv2d(c, c, 1)
        self.conv4, self.conv5 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, c, 1)
        self.sg = SimpleGate()
        self.beta = nn.Parameter(torch.zeros((1, c, 1, 1)), requires_grad=True)
        self.gamma = nn.Parameter(torch.zeros((1, c, 1, 1)), requires_grad=True)
        self.ending = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, inp: Tensor) -> Tensor:
        x = self.intro(inp)
        y = self.sg(self.conv2(self.conv1(self.norm1(x))))
        y = x + self.conv3(y * self.sca(y)) * self.beta
        x = y + self.conv5(self.sg(self.conv4(self.norm2(y)))) * self.gamma
        return self.ending(x) + inp


@architecture(whole={"linear_1": "the model's output"})
class TiedAutoencoder(nn.Module):
    """The decoder is the encoder, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = nn.Linear(192, 24), nn.Linear(24, 8)
        self.bias2, self.bias1 = nn.Parameter(torch.zeros(24)), nn.Parameter(torch.zeros(192))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.enc1(x.flatten(1)))
        z = torch.relu(self.enc2(h))
        h = torch.relu(F.linear(z, self.enc2.weight.t(), self.bias2))
        return F.linear(h, self.enc1.weight.t(), self.bias1).view_as(x)


@architecture(whole={"conv_transpose2d_1": "the model's output"})
class TiedConvolutions(nn.Module):
    """Convolutions, and transposed convolutions with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 2, stride=2)
        self.norm = nn.BatchNorm2d(10)
        self.bias = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.enc1(x))
        z = F.relu(self.norm(self.enc2(h)))
        h = F.relu(F.conv_transpose2d(z, self.enc2.weight, self.bias, stride=2))
        return F.conv_transpose2d(h, self.enc1.weight, padding=1)


@architecture()
class TiedSiamese(nn.Module):
    """One convolution that is called twice, and two that share a weight but not a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.right.weight = self.left.weight
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x), self.stem(x.flip(-1))
        return self.head(torch.cat((F.relu(self.left(a)), F.relu(self.right(b))), 1))
