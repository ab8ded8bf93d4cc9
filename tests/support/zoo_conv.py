"""Convolutions and linear layers of every kind."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .zoo_case import case, conv, make, parameter


@case(stem=conv(3, 8), head=conv(8, 4), free="stem", pinned={"head": "the model's output"})
def plain(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.stem(x)))


@case(stem=conv(3, 8, bias=False), mid=conv(8, 6, stride=2, dilation=2), head=conv(6, 4, bias=False), free="stem mid")
def some_without_bias(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.mid(F.relu(self.stem(x)))))


@case(stem=conv(3, 12), a=conv(12, 12, groups=2), b=conv(12, 12, groups=3), head=conv(12, 4), free="stem a b")
def grouped_then_other_groups(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.b(F.relu(self.a(F.relu(self.stem(x)))))))


@case(stem=conv(3, 8), mid=conv(8, 12, groups=2), head=conv(12, 4, 1), free="stem mid")
def grouped_widening(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.mid(F.relu(self.stem(x)))))


@case(stem=conv(3, 8), mid=conv(8, 8, groups=2), head=conv(8, 4, 1), free="stem mid")
def grouped_residual(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    return self.head(F.relu(x + self.mid(x)))


@case(stem=conv(3, 8), deep=conv(8, 8, groups=8), norm=make(nn.BatchNorm2d, 8), head=conv(8, 4, 1), free="stem deep")
def depthwise(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu6(self.norm(self.deep(self.stem(x)))))


@case(stem=conv(3, 6), deep=conv(6, 18, groups=6), head=conv(18, 4, 1), free="stem deep")
def depthwise_with_multiplier(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.deep(F.relu(self.stem(x)))))


@case(stem=conv(3, 12), deep=conv(12, 6, groups=6), head=conv(6, 4, 1), free="stem deep")
def one_output_per_group(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.deep(F.relu(self.stem(x)))))


@case(deep=conv(3, 9, groups=3), head=conv(9, 4, 1), pinned={"deep": "carries no removable channels"})
def depthwise_on_the_input(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.deep(x)))


@case((2, 4, 8, 8), mid=conv(4, 8, groups=2), head=conv(8, 4, 1), free="mid")
def grouped_on_the_input(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.mid(x)))


@case(stem=conv(3, 8), up=make(nn.ConvTranspose2d, 8, 6, 2, stride=2), head=conv(6, 4), free="stem up")
def transposed(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.up(F.relu(self.stem(x)))))


@case(
    stem=conv(3, 8),
    up=make(nn.ConvTranspose2d, 8, 12, 3, stride=2, padding=1, output_padding=1, groups=2),
    head=conv(12, 4),
    free="stem up",
)
def transposed_grouped(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.up(F.relu(self.stem(x)))))


@case(stem=conv(3, 6), up=make(nn.ConvTranspose2d, 6, 12, 2, stride=2, groups=6), head=conv(12, 4), free="stem up")
def transposed_depthwise(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.up(F.relu(self.stem(x)))))


@case(
    (2, 3, 16),
    stem=make(nn.Conv1d, 3, 8, 3),
    norm=make(nn.BatchNorm1d, 8),
    pool=make(nn.MaxPool1d, 2),
    head=make(nn.Conv1d, 8, 4, 3),
    free="stem",
)
def one_dimension(self: Any, x: Tensor) -> Tensor:
    return self.head(self.pool(F.relu(self.norm(self.stem(x)))))


@case(
    (2, 2, 4, 6, 6),
    stem=make(nn.Conv3d, 2, 8, 3, padding=1),
    norm=make(nn.BatchNorm3d, 8),
    mid=make(nn.Conv3d, 8, 8, 3, padding=1, groups=2),
    head=make(nn.Conv3d, 8, 4, 1),
    free="stem mid",
)
def three_dimensions(self: Any, x: Tensor) -> Tensor:
    return self.head(F.max_pool3d(F.relu(self.mid(self.norm(self.stem(x)))), 2))


@case(stem=conv(3, 4), a=make(nn.Linear, 256, 16), head=make(nn.Linear, 16, 5), free="stem a")
def flatten_to_linear(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.a(F.relu(self.stem(x)).flatten(1))))


@case((2, 6), a=make(nn.Linear, 6, 16), b=make(nn.Linear, 16, 12, bias=False), head=make(nn.Linear, 12, 3), free="a b")
def perceptron(self: Any, x: Tensor) -> Tensor:
    return self.head(F.gelu(self.b(F.relu(self.a(x)))))


@case((2, 5, 6), a=make(nn.Linear, 6, 16), norm=make(nn.LayerNorm, 16), head=make(nn.Linear, 16, 3), free="a")
def linear_over_tokens(self: Any, x: Tensor) -> Tensor:
    return self.head(self.norm(F.relu(self.a(x)))).mean(1)


@case((2, 5), words=make(nn.Embedding, 7, 12), head=make(nn.Linear, 12, 3), tokens=True, free="words")
def embedding_to_linear(self: Any, x: Tensor) -> Tensor:
    return self.head(self.words(x).mean(1))


@case(stem=parameter(8, 3, 3, 3), shift=parameter(8), head=parameter(4, 8), free="stem")
def functional_weights(self: Any, x: Tensor) -> Tensor:
    x = F.relu(F.conv2d(x, self.stem, self.shift, padding=1))
    return F.linear(x.mean((2, 3)), self.head)


@case(stem=conv(3, 8), w=parameter(8, 4, 3, 3), head=conv(8, 4), free="stem w")
def functional_grouped(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(F.conv2d(F.relu(self.stem(x)), self.w, padding=1, groups=2)))


@case(stem=conv(3, 8), w=parameter(8, 1, 3, 3), head=conv(8, 4), free="stem")
def functional_depthwise(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    return self.head(F.relu(F.conv2d(x, self.w, padding=1, groups=x.shape[1])))


@case(stem=parameter(8, 3, 3, 3), head=conv(8, 4), free="stem")
def standardised_weights_of_the_stem(self: Any, x: Tensor) -> Tensor:
    w = self.stem
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    return self.head(F.relu(F.conv2d(x, w, padding=1)))


@case(stem=conv(3, 8), w=parameter(6, 8, 3, 3), head=conv(6, 4), free="w")
def standardised_weights(self: Any, x: Tensor) -> Tensor:
    w = self.w
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    return self.head(F.relu(F.conv2d(F.relu(self.stem(x)), w, padding=1)))


@case(stem=conv(3, 8), head=conv(8, 4))
def decoder_with_the_encoders_weights(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = F.relu(self.stem(x))
    return self.head(x).mean((2, 3)), F.conv_transpose2d(x, self.stem.weight, padding=1)


@case((2, 3, 16), stem=make(nn.Conv1d, 3, 8, 3, padding="same"), head=make(nn.Conv1d, 8, 4, 1), free="stem")
def same_padding(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.stem(x)))


@case(stem=conv(3, 8), deep=conv(1, 1), head=conv(8, 4), free="stem")
def one_filter_for_all_channels(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    n, c, h, w = x.shape
    return self.head(self.deep(x.reshape(n * c, 1, h, w)).reshape(n, c, h, w))
