"""Building blocks of classifiers: splits, concatenations, branches, shuffles."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arch_case import architecture, conv_bn


@architecture()
class Res2Net(nn.Module):
    """Hierarchical 3x3 convolutions over the pieces of a split (Gao et al., arXiv 1904.01169)."""

    def __init__(self, width: int = 4, scale: int = 4) -> None:
        super().__init__()
        self.width, self.nums = width, scale - 1
        self.stem = conv_bn(3, 12)
        self.conv1 = nn.Conv2d(12, width * scale, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width * scale)
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(self.nums)])
        self.bns = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(self.nums)])
        self.conv3 = nn.Conv2d(width * scale, 12, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(12)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        residual = x
        out = self.relu(self.bn1(self.conv1(x)))
        spx = torch.split(out, self.width, 1)
        sp = spx[0]
        for i in range(self.nums):
            sp = spx[i] if i == 0 else sp + spx[i]
            sp = self.relu(self.bns[i](self.convs[i](sp)))
            out = sp if i == 0 else torch.cat((out, sp), 1)
        out = torch.cat((out, spx[self.nums]), 1)
        out = self.relu(self.bn3(self.conv3(out)) + residual)
        return self.head(out.mean((2, 3)))


@architecture(whole={"head": "the model's output"})
class CrossStagePartial(nn.Module):
    """Half of the channels go around the residual blocks, as in YOLOv8's C2f (Wang et al., arXiv 1911.11929)."""

    def __init__(self, c: int = 6) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, stride=2)
        self.cv1 = conv_bn(8, 2 * c, 1)
        self.m = nn.ModuleList([nn.Sequential(conv_bn(c, c), conv_bn(c, c)) for _ in range(2)])
        self.cv2 = conv_bn(4 * c, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(self.stem(x)).chunk(2, 1))
        for m in self.m:
            y.append(y[-1] + m(y[-1]))
        return self.head(self.cv2(torch.cat(y, 1)))


@architecture()
class CrossStagePartialConvs(nn.Module):
    """The split by two convolutions of YOLOv5's C3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.cv1 = conv_bn(8, 6, 1)
        self.cv2 = conv_bn(8, 6, 1)
        self.m = nn.Sequential(conv_bn(6, 6, 1), conv_bn(6, 6))
        self.cv3 = conv_bn(12, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a = self.cv1(x)
        return self.head(self.cv3(torch.cat((a + self.m(a), self.cv2(x)), dim=1)))


@architecture()
class Elan(nn.Module):
    """Layer aggregation of YOLOv7: every second layer of a chain is concatenated (arXiv 2211.04800)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.cv1 = conv_bn(8, 6, 1)
        self.cv2 = conv_bn(8, 6, 1)
        self.cv3 = conv_bn(6, 4)
        self.cv4 = conv_bn(4, 4)
        self.cv5 = conv_bn(4, 4)
        self.cv6 = conv_bn(4, 4)
        self.cv7 = conv_bn(20, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        outs = [self.cv1(x), self.cv2(x)]
        y = outs[-1]
        for first, second in ((self.cv3, self.cv4), (self.cv5, self.cv6)):
            y = second(first(y))
            outs.append(y)
        return self.head(self.cv7(torch.cat(outs[::-1], 1)))


class Ghost(nn.Module):
    """A few channels by convolution, the others by a cheap depthwise one over them."""

    def __init__(self, i: int, o: int, ratio: int = 2, *, relu: bool = True) -> None:
        super().__init__()
        self.oup = o
        init = -(-o // ratio)
        new = init * (ratio - 1)
        self.primary_conv = conv_bn(i, init, 1, relu=relu)
        self.cheap_operation = conv_bn(init, new, 3, groups=init, relu=relu)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary_conv(x)
        x2 = self.cheap_operation(x1)
        out = torch.cat([x1, x2], dim=1)
        return out[:, : self.oup, :, :]


@architecture()
class GhostBottleneck(nn.Module):
    """GhostNet's block, with an odd width and with a ratio of 3 (Han et al., arXiv 1911.11907)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.ghost1 = Ghost(8, 13)
        self.ghost2 = Ghost(13, 8, relu=False)
        self.ghost3 = Ghost(8, 12, ratio=3)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.ghost2(self.ghost1(x))
        return self.head(self.ghost3(x))


class RepVGGBlock(nn.Module):
    """Three branches, each with a norm: 3x3, 1x1 and, where widths allow, the input itself."""

    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.nonlinearity = nn.ReLU()
        self.rbr_identity = nn.BatchNorm2d(i) if i == o and stride == 1 else None
        self.rbr_dense = conv_bn(i, o, 3, stride=stride, relu=False)
        self.rbr_1x1 = conv_bn(i, o, 1, stride=stride, relu=False)

    def forward(self, inputs: Tensor) -> Tensor:
        id_out = 0 if self.rbr_identity is None else self.rbr_identity(inputs)
        return self.nonlinearity(self.rbr_dense(inputs) + self.rbr_1x1(inputs) + id_out)


@architecture(whole={"linear": "the model's output"})
class RepVGG(nn.Module):
    """Plain stages of re-parametrisable blocks (Ding et al., arXiv 2101.03697)."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([RepVGGBlock(3, 6, 2), RepVGGBlock(6, 6), RepVGGBlock(6, 8), RepVGGBlock(8, 8)])
        self.gap = nn.AdaptiveAvgPool2d(output_size=1)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.stages:
            x = block(x)
        out = self.gap(x)
        return self.linear(out.view(out.size(0), -1))


@architecture()
class DepthMultiplier(nn.Module):
    """Depthwise-separable convolutions in which every channel gives several (Xception, MobileNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.deep1 = nn.Conv2d(6, 18, 3, padding=1, groups=6)
        self.point1 = conv_bn(18, 8, 1)
        self.deep2 = nn.Conv2d(8, 16, (1, 3), padding="same", groups=8, bias=False)
        self.point2 = conv_bn(16, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point1(F.relu6(self.deep1(self.stem(x))))
        return self.head(x + self.point2(F.elu(self.deep2(x))))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the groups."""
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


@architecture()
class ShuffleUnits(nn.Module):
    """ShuffleNetV2's units, with a split and down-sampling (arXiv 1807.11164), and v1's shuffle between groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.down1 = nn.Sequential(conv_bn(8, 8, stride=2, groups=8, relu=False), conv_bn(8, 6, 1))
        self.down2 = nn.Sequential(conv_bn(8, 6, 1), conv_bn(6, 6, stride=2, groups=6, relu=False), conv_bn(6, 6, 1))
        self.branch = nn.Sequential(conv_bn(6, 6, 1), conv_bn(6, 6, groups=6, relu=False), conv_bn(6, 6, 1))
        self.squeeze = conv_bn(12, 8, 1, groups=2)
        self.expand = conv_bn(8, 12, 1, groups=2, relu=False)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = channel_shuffle(torch.cat((self.down1(x), self.down2(x)), dim=1), 2)
        half = x.shape[1] // 2
        x = channel_shuffle(torch.cat((x[:, :half], self.branch(x[:, half:])), 1), 2)
        y = self.expand(channel_shuffle(self.squeeze(x), 2))
        return self.head(F.relu(x + y))
