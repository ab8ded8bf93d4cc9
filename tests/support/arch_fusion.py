"""Networks in which maps of several sizes, or several inputs, meet."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arch_case import architecture, conv_bn


def separable(i: int, o: int) -> nn.Sequential:
    """Depthwise and pointwise convolution, and a norm."""
    return nn.Sequential(nn.Conv2d(i, i, 3, padding=1, groups=i, bias=False), nn.Conv2d(i, o, 1), nn.BatchNorm2d(o))


class BiFPNLayer(nn.Module):
    """Top-down, then bottom-up, every sum weighed by learned scalars."""

    def __init__(self, width: int, *, softmax: bool) -> None:
        super().__init__()
        self.softmax = softmax
        self.w1 = nn.Parameter(torch.ones(2, 2))
        self.w2 = nn.Parameter(torch.ones(3))
        self.w3 = nn.Parameter(torch.ones(2))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.down = nn.MaxPool2d(3, 2, 1)
        self.convs = nn.ModuleList([separable(width, width) for _ in range(4)])

    def normalised(self, w: Tensor) -> Tensor:
        if self.softmax:
            return w.softmax(dim=0)
        w = F.relu(w)
        return w / (torch.sum(w, dim=0) + 1e-4)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        p3, p4, p5 = inputs
        w1, w2, w3 = self.normalised(self.w1), self.normalised(self.w2), self.normalised(self.w3)
        p4_up = self.convs[0](F.silu(w1[0, 0] * p4 + w1[1, 0] * self.up(p5)))
        p3_out = self.convs[1](F.silu(w1[0, 1] * p3 + w1[1, 1] * self.up(p4_up)))
        p4_out = self.convs[2](F.silu(w2[0] * p4 + w2[1] * p4_up + w2[2] * self.down(p3_out)))
        p5_out = self.convs[3](F.silu(w3[0] * p5 + w3[1] * self.down(p4_out)))
        return [p3_out, p4_out, p5_out]


@architecture((2, 3, 16, 16), whole={"head": "the model's output"})
class BiFPN(nn.Module):
    """EfficientDet's neck in two layers, and a head that all levels share (Tan et al., arXiv 1911.09070)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleList([conv_bn(3, 6, stride=2), conv_bn(6, 8, stride=2), conv_bn(8, 10, stride=2)])
        self.lateral = nn.ModuleList([nn.Conv2d(c, 6, 1) for c in (6, 8, 10)])
        self.bifpn = nn.Sequential(BiFPNLayer(6, softmax=False), BiFPNLayer(6, softmax=True))
        self.tower = nn.ModuleList([separable(6, 6)])
        self.head = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for stage, lateral in zip(self.backbone, self.lateral, strict=True):
            x = stage(x)
            features.append(lateral(x))
        outputs: list[Tensor] = []
        for feature in self.bifpn(features):
            for layer in self.tower:
                feature = F.silu(layer(feature))
            outputs.append(self.head(feature))
        return outputs


def double_conv(i: int, o: int) -> nn.Sequential:
    """Two convolutions with norms."""
    return nn.Sequential(*conv_bn(i, o), *conv_bn(o, o))


@architecture((2, 3, 16, 16), whole={"outc": "the model's output"})
class UNet(nn.Module):
    """Skips by concatenation, up-sampling by transposed convolutions, and padding to the skip's size."""

    def __init__(self) -> None:
        super().__init__()
        widths = (4, 6, 8)
        self.inc = double_conv(3, widths[0])
        self.downs = nn.ModuleList([nn.Sequential(nn.MaxPool2d(2), double_conv(a, b)) for a, b in pairwise(widths)])
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.ups = nn.ModuleList([nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs])
        self.convs = nn.ModuleList([double_conv(2 * b, b) for _, b in pairs])
        self.outc = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.inc(x)]
        for down in self.downs:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up, conv in zip(self.ups, self.convs, strict=True):
            x, skip = up(x), skips.pop()
            dy, dx = skip.size()[2] - x.size()[2], skip.size()[3] - x.size()[3]
            x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
            x = conv(torch.cat([skip, x], dim=1))
        return self.outc(x)


class Residual(nn.Module):
    """A pre-activated bottleneck."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, o // 2, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(o // 2), nn.Conv2d(o // 2, o // 2, 3, padding=1)
        self.bn3, self.conv3 = nn.BatchNorm2d(o // 2), nn.Conv2d(o // 2, o, 1)
        self.skip_layer = nn.Conv2d(i, o, 1)
        self.need_skip = i != o

    def forward(self, x: Tensor) -> Tensor:
        residual = self.skip_layer(x) if self.need_skip else x
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        out += residual
        return out


class HourglassLevel(nn.Module):
    """A skip around a smaller hourglass."""

    def __init__(self, n: int, f: int, increase: int = 2) -> None:
        super().__init__()
        self.up1 = Residual(f, f)
        self.pool1 = nn.MaxPool2d(2, 2)
        self.low1 = Residual(f, f + increase)
        self.low2 = HourglassLevel(n - 1, f + increase) if n > 1 else Residual(f + increase, f + increase)
        self.low3 = Residual(f + increase, f)
        self.up2 = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        return self.up1(x) + self.up2(self.low3(self.low2(self.low1(self.pool1(x)))))


@architecture((2, 3, 16, 16), whole={"heads.0": "the model's output", "heads.1": "the model's output"})
class StackedHourglass(nn.Module):
    """Two stacked hourglasses, each with a prediction that is fed back (Newell et al., arXiv 1603.06937)."""

    def __init__(self) -> None:
        super().__init__()
        self.pre = conv_bn(3, 8)
        self.hourglasses = nn.ModuleList([HourglassLevel(2, 8), HourglassLevel(1, 8)])
        self.features = nn.ModuleList([nn.Sequential(Residual(8, 8), conv_bn(8, 8, 1)) for _ in range(2)])
        self.heads = nn.ModuleList([nn.Conv2d(8, 3, 1) for _ in range(2)])
        self.merge_features = nn.Conv2d(8, 8, 1)
        self.merge_preds = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        predictions: list[Tensor] = []
        for i in range(2):
            feature = self.features[i](self.hourglasses[i](x))
            predictions.append(self.heads[i](feature))
            if i < 1:
                x = x + self.merge_preds(predictions[-1]) + self.merge_features(feature)
        return torch.stack(predictions, 1)


@architecture((2, 3, 16, 16), whole={"head": "the model's output"})
class HighResolutionExchange(nn.Module):
    """HRNet: branches of three sizes, each the sum of all of the stage before (Wang et al., arXiv 1908.07919)."""

    def __init__(self) -> None:
        super().__init__()
        widths = self.widths = (4, 6, 8)
        self.stem = conv_bn(3, 4)
        self.transition = nn.ModuleList([conv_bn(4, 6, stride=2), conv_bn(6, 8, stride=2)])
        self.branches = nn.ModuleList([nn.Sequential(conv_bn(c, c), conv_bn(c, c, relu=False)) for c in widths])
        self.fuse_layers = nn.ModuleList(
            [nn.ModuleList([self._fuse(i, j) for j in range(len(widths))]) for i in range(len(widths))]
        )
        self.head = nn.Conv2d(sum(widths), 4, 1)

    def _fuse(self, i: int, j: int) -> nn.Module:
        if j == i:
            return nn.Identity()
        if j > i:
            return nn.Sequential(
                *conv_bn(self.widths[j], self.widths[i], 1, relu=False), nn.Upsample(scale_factor=2 ** (j - i))
            )
        inner = [conv_bn(self.widths[j], self.widths[j], stride=2) for _ in range(i - j - 1)]
        return nn.Sequential(*inner, conv_bn(self.widths[j], self.widths[i], stride=2, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        xs = [self.stem(x)]
        for layer in self.transition:
            xs.append(layer(xs[-1]))
        xs = [F.relu(x + branch(x)) for x, branch in zip(xs, self.branches, strict=True)]
        fused: list[Tensor] = []
        for row in self.fuse_layers:
            assert isinstance(row, nn.ModuleList)
            y = row[0](xs[0])
            for j in range(1, len(xs)):
                y = y + row[j](xs[j])
            fused.append(F.relu(y))
        size = fused[0].shape[-2:]
        ups = [F.interpolate(x, size, mode="bilinear", align_corners=True) for x in fused[1:]]
        return self.head(torch.cat([fused[0], *ups], 1))


@architecture((2, 3, 16, 16))
class SpatialPyramidPooling(nn.Module):
    """YOLO's Focus (every second pixel into channels), SPP and SPPF (pools of pools, concatenated)."""

    def __init__(self) -> None:
        super().__init__()
        self.focus = conv_bn(12, 8)
        self.spp1, self.spp2 = conv_bn(8, 4, 1), conv_bn(16, 8, 1)
        self.pools = nn.ModuleList([nn.MaxPool2d(k, stride=1, padding=k // 2) for k in (3, 5, 7)])
        self.cv1, self.cv2 = conv_bn(8, 4, 1), conv_bn(16, 8, 1)
        self.m = nn.MaxPool2d(5, stride=1, padding=2)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        x = self.spp1(self.focus(torch.cat(parts, 1)))
        x = self.cv1(self.spp2(torch.cat([x] + [m(x) for m in self.pools], 1)))
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.head(self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1)))


class ASPPPooling(nn.Sequential):
    """The image-wide average, spread over all positions."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Conv2d(i, o, 1), nn.ReLU())

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).expand(-1, -1, *input.shape[2:])


@architecture()
class AtrousPyramid(nn.Module):
    """DeepLab's ASPP (arXiv 1706.05587), with the average spread by ``expand``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        atrous = [nn.Conv2d(8, 4, 3, padding=d, dilation=d) for d in (1, 2, 3)]
        self.convs = nn.ModuleList([*atrous, ASPPPooling(8, 4)])
        self.project = conv_bn(16, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.project(torch.cat([conv(x) for conv in self.convs], dim=1)))


@architecture((2, 3, 16, 16), (2, 1, 16, 16), (2, 5), whole={"head.2": "the model's output"})
class MultiInputFusion(nn.Module):
    """Colour and depth, added stage by stage (FuseNet), then concatenated with a vector of other measurements."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb = nn.ModuleList([conv_bn(3, 6, stride=2), conv_bn(6, 8, stride=2)])
        self.depth = nn.ModuleList([conv_bn(1, 6, stride=2), conv_bn(6, 8, stride=2)])
        self.other = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6))
        self.film = nn.Linear(6, 16)
        self.head = nn.Sequential(nn.Linear(14, 10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x: Tensor, d: Tensor, m: Tensor) -> Tensor:
        for rgb, depth in zip(self.rgb, self.depth, strict=True):
            d = depth(d)
            x = rgb(x) + d
        m = F.relu(self.other(m))
        gamma, beta = self.film(m)[:, :, None, None].chunk(2, dim=1)
        x = F.relu((1 + gamma) * x + beta)
        return self.head(torch.cat([x.mean(dim=(2, 3)), m], dim=-1))


@architecture()
class GlobalContext(nn.Module):
    """ParseNet: image-wide features beside local ones, spread by ``expand_as`` (Liu et al., arXiv 1506.04579)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 9)
        self.near, self.far = nn.Conv2d(9, 9, 3, padding=1, groups=3), nn.Conv2d(9, 9, 1)
        self.head = nn.Conv2d(18, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        near = F.relu(self.near(x))
        far = F.relu(self.far(F.adaptive_avg_pool2d(x, 1))).expand_as(near)
        return self.head(torch.cat([near, far], dim=1))


@architecture((2, 3, 8, 8))
class ConvGRU(nn.Module):
    """RAFT's update: the same gated convolutions, again and again (Teed and Deng, arXiv 2003.12039)."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.context, self.state = conv_bn(3, 6), nn.Conv2d(3, hidden, 3, padding=1)
        self.convz, self.convr, self.convq = (nn.Conv2d(hidden + 6, hidden, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(hidden, 2, 3, padding=1)

    def mix(self, h: Tensor, q: Tensor, z: Tensor) -> Tensor:
        return (1 - z) * h + z * q

    def forward(self, x: Tensor) -> list[Tensor]:
        h, x = torch.tanh(self.state(x)), self.context(x)
        flows: list[Tensor] = []
        for _ in range(2):
            hx = torch.cat([h, x], dim=1)
            z, r = torch.sigmoid(self.convz(hx)), torch.sigmoid(self.convr(hx))
            q = torch.tanh(self.convq(torch.cat([r * h, x], dim=1)))
            h = self.mix(h, q, z)
            flows.append(self.head(h))
        return flows


@architecture()
class ConvGRUByLerp(ConvGRU):
    """The same by ``torch.lerp``, whose weight is a tensor."""

    def mix(self, h: Tensor, q: Tensor, z: Tensor) -> Tensor:
        return torch.lerp(h, q, z)
