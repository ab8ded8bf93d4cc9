"""Later blocks: partial and large convolutions, gates by products, norms by hand."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arch_case import Classifier, architecture, conv_bn

CLASSES = {"head.2": "the model's output"}


class PartialConv(nn.Module):
    """A convolution of the first channels only."""

    def __init__(self, dim: int, n_div: int, *, in_place: bool) -> None:
        super().__init__()
        self.dim_conv3 = dim // n_div
        self.dim_untouched = dim - self.dim_conv3
        self.in_place = in_place
        self.partial_conv3 = nn.Conv2d(self.dim_conv3, self.dim_conv3, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            x = x.clone()
            x[:, : self.dim_conv3, :, :] = self.partial_conv3(x[:, : self.dim_conv3, :, :])
            return x
        x1, x2 = torch.split(x, [self.dim_conv3, self.dim_untouched], dim=1)
        return torch.cat((self.partial_conv3(x1), x2), 1)


@architecture(whole=CLASSES)
class FasterNet(nn.Module):
    """Partial convolution by split and concatenation (Chen et al., arXiv 2303.03667)."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.spatial_mixing = PartialConv(8, 4, in_place=in_place)
        self.mlp = nn.Sequential(nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.GELU(), nn.Conv2d(12, 8, 1))
        self.head = Classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.mlp(self.spatial_mixing(x)))


@architecture(whole=CLASSES)
class FasterNetInPlace(FasterNet):
    """The same by assignment to a slice, its authors' way for inference."""

    def __init__(self) -> None:
        super().__init__(in_place=True)


@architecture(whole=CLASSES)
class InceptionNeXt(nn.Module):
    """Depthwise convolutions of several shapes over unequal parts (Yu et al., arXiv 2303.16900)."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        gc = dim // 8
        self.stem = conv_bn(3, dim)
        self.dwconv_hw = nn.Conv2d(gc, gc, 3, padding=1, groups=gc)
        self.dwconv_w = nn.Conv2d(gc, gc, kernel_size=(1, 5), padding=(0, 2), groups=gc)
        self.dwconv_h = nn.Conv2d(gc, gc, kernel_size=(5, 1), padding=(2, 0), groups=gc)
        self.split_indexes = [dim - 3 * gc, gc, gc, gc]
        self.norm = nn.BatchNorm2d(dim)
        self.mlp = nn.Sequential(nn.Conv2d(dim, 2 * dim, 1), nn.GELU(), nn.Conv2d(2 * dim, dim, 1))
        self.gamma = nn.Parameter(1e-6 * torch.ones(dim))
        self.head = Classifier(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x_id, x_hw, x_w, x_h = torch.split(x, self.split_indexes, dim=1)
        y = torch.cat((x_id, self.dwconv_hw(x_hw), self.dwconv_w(x_w), self.dwconv_h(x_h)), dim=1)
        y = self.mlp(self.norm(y)).mul(self.gamma.reshape(1, -1, 1, 1))
        return self.head(y + x)


@architecture(whole=CLASSES)
class VisualAttention(nn.Module):
    """Large kernel attention: a decomposed convolution as a gate (Guo et al., arXiv 2202.09741)."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn(3, d)
        self.proj_1 = nn.Conv2d(d, d, 1)
        self.conv0 = nn.Conv2d(d, d, 5, padding=2, groups=d)
        self.conv_spatial = nn.Conv2d(d, d, 7, stride=1, padding=9, groups=d, dilation=3)
        self.conv1 = nn.Conv2d(d, d, 1)
        self.proj_2 = nn.Conv2d(d, d, 1)
        self.head = Classifier(d)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shortcut = x.clone()
        x = F.gelu(self.proj_1(x))
        u = x.clone()
        x = u * self.conv1(self.conv_spatial(self.conv0(x)))
        return self.head(self.proj_2(x) + shortcut)


class Pooling(nn.Module):
    """What the neighbourhood differs by."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x


@architecture()
class PoolFormer(nn.Module):
    """Pooling in place of attention, group norm over all, layer scales (Yu et al., arXiv 2111.11418)."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)
        self.token_mixer = Pooling()
        self.fc1, self.fc2 = nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(2 * dim, dim, 1)
        self.layer_scale_1 = nn.Parameter(1e-5 * torch.ones(dim))
        self.layer_scale_2 = nn.Parameter(1e-5 * torch.ones(dim))
        self.norm = nn.GroupNorm(1, dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.layer_scale_1.unsqueeze(-1).unsqueeze(-1) * self.token_mixer(self.norm1(x))
        y = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        x = x + self.layer_scale_2.unsqueeze(-1).unsqueeze(-1) * y
        return self.head(self.norm(x).mean([-2, -1]))


@architecture()
class CoordinateAttention(nn.Module):
    """Rows and columns pooled, put into one strip, and taken apart again (Hou et al., arXiv 2103.02907)."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn(3, c)
        self.pool_h, self.pool_w = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        self.conv1, self.bn1, self.act = nn.Conv2d(c, 6, 1), nn.BatchNorm2d(6), nn.Hardswish()
        self.conv_h, self.conv_w = nn.Conv2d(6, c, 1), nn.Conv2d(6, c, 1)
        self.head = nn.Conv2d(c, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = identity = self.stem(x)
        _, _, h, w = x.size()
        y = torch.cat([self.pool_h(x), self.pool_w(x).permute(0, 1, 3, 2)], dim=2)
        y = self.act(self.bn1(self.conv1(y)))
        x_h, x_w = torch.split(y, [h, w], dim=2)
        a_w = self.conv_w(x_w.permute(0, 1, 3, 2)).sigmoid()
        return self.head(identity * a_w * self.conv_h(x_h).sigmoid())


@architecture()
class FunnelActivation(nn.Module):
    """FReLU: the maximum of a map and its depthwise convolution (Ma et al., arXiv 2007.11824); and maxout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, relu=False)
        self.conv_frelu = nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False)
        self.bn_frelu = nn.BatchNorm2d(8)
        self.maxout = nn.Conv2d(8, 12, 1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.max(x, self.bn_frelu(self.conv_frelu(x)))
        x = self.maxout(x)
        x = x.view(x.size(0), 6, 2, x.size(2), x.size(3)).max(dim=2)[0]
        return self.head(x)


class BlurPool(nn.Module):
    """A fixed filter, the same for every channel."""

    filt: Tensor

    def __init__(self, channels: int, stride: int = 2) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride
        a = torch.tensor([1.0, 2.0, 1.0])
        filt = a[:, None] * a[None, :]
        self.register_buffer("filt", (filt / filt.sum())[None, None, :, :].repeat((channels, 1, 1, 1)))
        self.pad = nn.ReflectionPad2d((1, 1, 1, 1))

    def forward(self, inp: Tensor) -> Tensor:
        return F.conv2d(self.pad(inp), self.filt, stride=self.stride, groups=inp.shape[1])


@architecture()
class AntiAliased(nn.Module):
    """Down-sampling behind a blur (Zhang, arXiv 1904.11486)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.pool = nn.Sequential(nn.MaxPool2d(2, stride=1), BlurPool(8))
        self.body = conv_bn(8, 6)
        self.blur = BlurPool(6)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blur(self.body(self.pool(self.stem(x)))))


class LayerNorm2d(nn.Module):
    """A layer norm over channels in second place, by hand, as in ConvNeXt, SAM and NAFNet."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class GRN(nn.Module):
    """Global response normalisation, channels last."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        gx = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        nx = gx / (gx.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * nx) + self.beta + x


@architecture(whole={"head": "the model's output"})
class ConvNeXtV2(nn.Module):
    """ConvNeXt with a response norm (Woo et al., arXiv 2301.00808)."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dim, 2, stride=2), LayerNorm2d(dim))
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.act, self.grn = nn.Linear(dim, 4 * dim), nn.GELU(), GRN(4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.down = nn.Conv2d(dim, 12, 2, stride=2)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = inp = self.stem(x)
        x = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        x = self.pwconv2(self.grn(self.act(self.pwconv1(x))))
        x = inp + x.permute(0, 3, 1, 2)
        return self.head(self.down(x).mean([-2, -1]))


@architecture()
class HalfInstanceNorm(nn.Module):
    """HINet: instance norm for one half of the channels (Chen et al., arXiv 2105.06086); halves change places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.identity = nn.Conv2d(8, 8, 1)
        self.conv_1, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(4, affine=True)
        self.conv_2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.conv_1(x)
        out_1, out_2 = torch.chunk(out, 2, dim=1)
        out = torch.cat([self.norm(out_1), out_2], dim=1)
        out = F.leaky_relu(self.conv_2(F.leaky_relu(out, 0.2)), 0.2)
        out += self.identity(x)
        return self.head(torch.cat(out.chunk(2, dim=1)[::-1], dim=1))
