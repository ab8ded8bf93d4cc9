"""Networks that move data or compute weights in unusual ways: shifts, transforms, kernels per sample, grids."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from .arch_case import architecture, conv_bn


class WSConv2d(nn.Conv2d):
    """A convolution whose filters have mean zero and variance one."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight - mean
        std = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        weight = weight / std.expand_as(weight)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@architecture(whole={"stem": "of the weights", "head": "the model's output"})
class WeightStandardisation(nn.Module):
    """With group norm, as in Big Transfer (Qiao et al., arXiv 1903.10520)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv, self.norm = WSConv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.body = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(F.relu(self.stem(x)))))
        return self.head(F.relu(self.body(x)))


class TemporalBlock(nn.Module):
    """Two causal convolutions, with normed weights or not, and a shortcut."""

    def __init__(self, i: int, o: int, dilation: int, *, normed: bool) -> None:
        super().__init__()
        padding = self.chomp = 2 * dilation
        norm = parametrizations.weight_norm if normed else nn.Identity()
        self.conv1 = norm(nn.Conv1d(i, o, 3, padding=padding, dilation=dilation))
        self.conv2 = norm(nn.Conv1d(o, o, 3, padding=padding, dilation=dilation))
        self.downsample = nn.Conv1d(i, o, 1) if i != o else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.dropout(F.relu(self.conv1(x)[:, :, : -self.chomp].contiguous()), 0.1, self.training)
        out = F.dropout(F.relu(self.conv2(out)[:, :, : -self.chomp].contiguous()), 0.1, self.training)
        res = x if self.downsample is None else self.downsample(x)
        return F.relu(out + res)


@architecture((2, 1, 32), whole={"linear": "the model's output"})
class TemporalConvNet(nn.Module):
    """TCN (Bai et al., arXiv 1803.01271)."""

    def __init__(self, *, normed: bool = False) -> None:
        super().__init__()
        widths = (1, 6, 6, 8)
        self.network = nn.Sequential(
            *[TemporalBlock(i, o, 2**level, normed=normed) for level, (i, o) in enumerate(pairwise(widths))]
        )
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.network(x)[:, :, -1])


# Of all layers only the shortcuts are ordinary ones, and they are added to what the others give.
NORMED = "ParametrizedConv1d"


@architecture(
    (2, 1, 32),
    whole={"network.0.downsample": NORMED, "network.2.downsample": NORMED, "linear": "the model's output"},
)
class TemporalConvNetNormed(TemporalConvNet):
    """The same with weight normalisation: the weight is computed, so its channels stay until that is removed."""

    def __init__(self) -> None:
        super().__init__(normed=True)


class TNet(nn.Module):
    """Predicts a matrix that its input is multiplied by."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.conv1, self.bn1 = nn.Conv1d(k, 8, 1), nn.BatchNorm1d(8)
        self.fc1, self.fc2 = nn.Linear(8, 6), nn.Linear(6, k * k)

    def forward(self, x: Tensor) -> Tensor:
        batchsize = x.size()[0]
        x = F.relu(self.bn1(self.conv1(x)))
        x = torch.max(x, 2, keepdim=True)[0].view(-1, 8)
        x = self.fc2(F.relu(self.fc1(x)))
        iden = torch.eye(self.k).flatten().view(1, self.k * self.k).repeat(batchsize, 1)
        return (x + iden.to(x)).view(-1, self.k, self.k)


# The feature transform has a row and a column for every channel: one may go only with all of both.
SQUARE = "bmm of different arrangements of channels"


@architecture((2, 3, 16), whole={"conv1": SQUARE, "fstn.fc2": SQUARE, "head": "the model's output"})
class PointNet(nn.Module):
    """Point clouds: shared perceptrons, a maximum over points, learned transforms (Qi et al., arXiv 1612.00593)."""

    def __init__(self) -> None:
        super().__init__()
        self.stn, self.fstn = TNet(3), TNet(6)
        self.conv1, self.bn1 = nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6)
        self.conv2, self.bn2 = nn.Conv1d(6, 8, 1), nn.BatchNorm1d(8)
        self.conv3 = nn.Conv1d(14, 8, 1)
        self.head = nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        n_pts = x.size()[2]
        trans = self.stn(x)
        x = torch.bmm(x.transpose(2, 1), trans).transpose(2, 1)
        x = F.relu(self.bn1(self.conv1(x)))
        x = torch.bmm(x.transpose(2, 1), self.fstn(x)).transpose(2, 1)
        pointfeat = x
        x = torch.max(self.bn2(self.conv2(x)), 2, keepdim=True)[0]
        x = x.view(-1, 8, 1).repeat(1, 1, n_pts)
        return self.head(F.relu(self.conv3(torch.cat([x, pointfeat], 1))))


@architecture()
class NonLocal(nn.Module):
    """Every position looks at every other (Wang et al., arXiv 1711.07971)."""

    def __init__(self, c: int = 8, inter: int = 6) -> None:
        super().__init__()
        self.inter = inter
        self.stem = conv_bn(3, c)
        self.g, self.theta, self.phi = (nn.Conv2d(c, inter, 1) for _ in range(3))
        self.pool = nn.MaxPool2d(2)
        self.w = nn.Sequential(nn.Conv2d(inter, c, 1), nn.BatchNorm2d(c))
        self.head = nn.Conv2d(c, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch_size = x.size(0)
        g_x = self.pool(self.g(x)).view(batch_size, self.inter, -1).permute(0, 2, 1)
        theta_x = self.theta(x).view(batch_size, self.inter, -1).permute(0, 2, 1)
        phi_x = self.pool(self.phi(x)).view(batch_size, self.inter, -1)
        y = torch.matmul(F.softmax(torch.matmul(theta_x, phi_x), dim=-1), g_x)
        y = y.permute(0, 2, 1).contiguous().view(batch_size, self.inter, *x.size()[2:])
        return self.head(self.w(y) + x)


@architecture(
    whole={
        "stem.0": "computed from several tensors",
        "conv2d": "carries no removable channels",
        "head": "the model's output",
    }
)
class ConditionalConvolution(nn.Module):
    """A convolution for every sample, mixed from experts (CondConv, Yang et al., arXiv 1904.04971)."""

    def __init__(self, experts: int = 3) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.routing = nn.Linear(8, experts)
        self.weight = nn.Parameter(torch.randn(experts, 6, 8, 3, 3) * 0.1)
        self.body = nn.Sequential(conv_bn(6, 16), conv_bn(16, 8))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        routes = torch.sigmoid(self.routing(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        b, c, h, w = x.shape
        weight = (routes @ self.weight.view(3, -1)).view(b * 6, c, 3, 3)
        y = F.conv2d(x.reshape(1, b * c, h, w), weight, padding=1, groups=b).view(b, 6, h, w)
        return self.head(self.body(F.relu(y)))


@architecture((2, 3, 4, 8, 8), whole={"fc": "the model's output"})
class TemporalShift(nn.Module):
    """TSM: a few channels move one frame back, a few one forth, written into zeros (Lin et al., arXiv 1811.08383)."""

    def __init__(self, fold_div: int = 4) -> None:
        super().__init__()
        self.fold_div = fold_div
        self.stem = conv_bn(3, 8)
        self.conv = conv_bn(8, 8)
        self.fc = nn.Linear(8, 4)

    def shift(self, x: Tensor) -> Tensor:
        fold = x.size(2) // self.fold_div
        out = torch.zeros_like(x)
        out[:, :-1, :fold] = x[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return out

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, h, w = x.size()
        x = self.stem(x.transpose(1, 2).reshape(n * t, c, h, w))
        y = self.shift(x.view(n, t, 8, h, w)).view(n * t, 8, h, w)
        x = x + self.conv(y)
        return self.fc(x.mean((2, 3))).view(n, t, -1).mean(1)


@architecture(whole={"spatial.2": "one channel is broadcast over many", "head": "the model's output"})
class BottleneckAttention(nn.Module):
    """BAM: gates of channels and of positions, both spread by ``expand_as`` (Park et al., arXiv 1807.06514)."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn(3, c)
        self.channel = nn.Sequential(nn.Flatten(), nn.Linear(c, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, c))
        self.spatial = nn.Sequential(nn.Conv2d(c, 4, 1), nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 1, 1))
        self.body = conv_bn(c, 6)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        channel = self.channel(F.avg_pool2d(x, x.size(2))).unsqueeze(2).unsqueeze(3).expand_as(x)
        att = 1 + torch.sigmoid(channel * self.spatial(x).expand_as(x))
        return self.head(self.body(att * x))


@architecture()
class CoordConv(nn.Module):
    """Two more channels say where every position is (Liu et al., arXiv 1807.03247)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.conv = nn.Conv2d(10, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, _, h, w = x.shape
        rows = torch.linspace(-1, 1, 8).view(1, 1, 8, 1).expand(b, 1, h, w)
        columns = torch.linspace(-1, 1, 8).view(1, 1, 1, 8).expand(b, 1, h, w)
        return self.head(F.relu(self.conv(torch.cat([x, rows, columns], 1))))


@architecture()
class MixedOperation(nn.Module):
    """DARTS: a softmax over candidates weighs their sum (Liu et al., arXiv 1806.09055)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.alphas = nn.Parameter(1e-3 * torch.randn(4))
        separable = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.ops = nn.ModuleList([nn.MaxPool2d(3, 1, 1), nn.Identity(), conv_bn(8, 8), separable])
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weights = F.softmax(self.alphas, dim=-1)
        return self.head(sum(w * op(x) for w, op in zip(weights, self.ops, strict=False)))


@architecture(whole={"localization.4": "affine_grid", "head": "the model's output"})
class SpatialTransformer(nn.Module):
    """Feature maps are sampled along a predicted grid, every channel alike (Jaderberg et al., arXiv 1506.02025)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.localization = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 6)
        )
        self.body = conv_bn(8, 6)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        theta = self.localization(x).view(-1, 2, 3)
        grid = F.affine_grid(theta, x.size(), align_corners=False)  # pyright: ignore[reportArgumentType]
        return self.head(self.body(F.grid_sample(x, grid, align_corners=False)))
