"""Shapes of programs: several inputs and outputs, sharing, unknown operations, hooks, frozen weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from secateur.compiler.vision import import_torchvision

from .zoo_case import IMAGE, case, conv, make

StochasticDepth = import_torchvision().ops.StochasticDepth


@case(stem=conv(3, 8), body=conv(8, 8), norm=make(nn.BatchNorm2d, 8), head=conv(8, 4), free="stem body")
def called_twice(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    return self.head(self.norm(self.body(F.relu(self.norm(self.body(x))))))


@case(
    stem=conv(3, 8),
    a=conv(8, 6),
    b=conv(8, 6),
    head=conv(6, 4),
    free="stem a",
    prepare=lambda m: setattr(m.b, "weight", m.a.weight),
)
def tied_weights(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    return self.head(F.relu(self.a(x)) + F.relu(self.b(x)))


@case(
    stem=conv(3, 8),
    a=conv(3, 8),
    mid=conv(8, 6),
    head=conv(6, 4),
    free="stem a mid",
    prepare=lambda m: setattr(m.a, "weight", m.stem.weight),
)
def tied_weights_apart(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.mid(self.stem(x)))) - self.head(F.relu(self.mid(self.a(-x))))


@case(stem=conv(3, 8), a=conv(8, 4), b=conv(8, 2), free="stem", pinned={"a": "output", "b": "output"})
def two_outputs(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = F.relu(self.stem(x))
    return self.a(x), self.b(x)


@case(stem=conv(3, 8), a=conv(8, 6), b=conv(6, 2), free="stem", pinned={"a": "output"})
def dict_output(self: Any, x: Tensor) -> dict[str, Tensor]:
    x = F.relu(self.stem(x))
    a = self.a(x)
    return {"features": a, "out": self.b(F.relu(a))}


@case(IMAGE, (2, 5, 8, 8), a=conv(3, 8), b=conv(5, 8), head=conv(8, 4), free="a b")
def two_inputs(self: Any, x: Tensor, y: Tensor) -> Tensor:
    return self.head(F.relu(self.a(x) + self.b(y)))


@case(stem=conv(3, 8), head=conv(8, 4), pinned={"stem": "no rule for operation 'cumsum'"})
def unknown_function(self: Any, x: Tensor) -> Tensor:
    return self.head(torch.cumsum(self.stem(x), 2))


@case(stem=conv(3, 8), a=conv(8, 6), head=conv(6, 4), free="a", pinned={"stem": "fft"})
def unknown_function_of_frequencies(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.a(torch.fft.fft2(self.stem(x)).abs())))


@case(stem=conv(3, 8), fold=make(nn.Unfold, 2, stride=2), head=make(nn.Conv1d, 32, 4, 1), pinned={"stem": "Unfold"})
def unknown_module(self: Any, x: Tensor) -> Tensor:
    return self.head(self.fold(self.stem(x)))


@case(
    stem=conv(3, 8),
    a=make(nn.MultiheadAttention, 8, 2, batch_first=True),
    head=make(nn.Linear, 8, 4),
    free="stem a.out_proj",
)
def attention_module(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x).flatten(2).transpose(1, 2)
    return self.head(self.a(x, x, x, need_weights=False)[0]).mean(1)


@case(
    stem=conv(3, 8),
    mid=conv(8, 8),
    head=conv(8, 4),
    pinned={"stem": "Conv2d"},
    prepare=lambda m: parametrizations.weight_norm(m.mid),
)
def parametrized(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.mid(F.relu(self.stem(x)))))


def _double(module: Any, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


def _watch(module: Any, inputs: Any, output: Tensor) -> None:
    module.seen = float(output.detach().mean())


@case(
    stem=conv(3, 8),
    mid=conv(8, 8),
    head=conv(8, 4),
    free="stem mid",
    prepare=lambda m: m.mid.register_forward_hook(_double),
)
def hooked(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.mid(F.relu(self.stem(x)))))


@case(
    stem=conv(3, 8),
    mid=conv(8, 8),
    head=conv(8, 4),
    pinned={"stem": "hook"},
    prepare=lambda m: m.mid.register_forward_hook(_watch),
)
def watched(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.mid(F.relu(self.stem(x)))))


@case(
    stem=conv(3, 8),
    norm=make(nn.BatchNorm2d, 8),
    head=conv(8, 4),
    free="stem",
    prepare=lambda m: m.stem.requires_grad_(False),
)
def frozen(self: Any, x: Tensor) -> Tensor:
    return self.head(F.relu(self.norm(self.stem(x))))


@case(stem=conv(3, 8), a=conv(8, 8), drop=make(StochasticDepth, 0.3, "row"), head=conv(8, 4), free="stem a")
def drop_of_paths(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    return self.head(x + self.drop(self.a(x)))


@case(stem=conv(3, 8), aux=conv(8, 4), head=conv(8, 4), free="stem")
def auxiliary_head_in_training(self: Any, x: Tensor) -> Any:
    x = F.relu(self.stem(x))
    if self.training:
        return self.head(x), self.aux(x)
    return self.head(x)


@case(
    stem=conv(3, 8),
    body=make(nn.ModuleList),
    head=conv(8, 4),
    free="stem body.0 body.1",
    prepare=lambda m: m.body.extend([conv(8, 8)(), conv(8, 8)()]),
)
def module_list(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    for layer in self.body:
        x = x + F.relu(layer(x))
    return self.head(x)


@case(stem=conv(3, 8), head=conv(8, 4), free="stem")
def cast_in_between(self: Any, x: Tensor) -> Tensor:
    return self.head(self.stem(x.clone()).contiguous().to(x.dtype).type_as(x))


@case(stem=conv(3, 8), a=conv(8, 6), head=conv(6, 4), free="stem a")
def layer_that_nobody_reads(self: Any, x: Tensor) -> Tensor:
    x = F.relu(self.stem(x))
    self.head(self.a(x) * 2.0)
    return self.head(F.relu(self.a(x)))


@case(stem=conv(3, 8), a=conv(8, 8), head=conv(8, 4), free="stem", pinned={"a": "in place"})
def changed_through_a_view(self: Any, x: Tensor) -> Tensor:
    x = self.a(F.relu(self.stem(x))) * 1.0
    x[:, :3].mul_(0.5)
    return self.head(x)


@case(stem=conv(3, 8), a=conv(4, 8), head=conv(12, 4), free="a")
def view_of_what_is_changed(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    y = x[:, ::2]
    F.relu(x, inplace=True)
    return self.head(torch.cat([F.relu(self.a(y)), y], 1))


@case(stem=conv(3, 8), head=conv(8, 3), free="stem")
def output_of_two_kinds(self: Any, x: Tensor) -> tuple[Tensor, Any]:
    x = F.relu(self.stem(x))
    return self.head(x), x.shape[1]


@case(stem=conv(3, 8), head=conv(8, 4), free="stem")
def input_changed_in_place(self: Any, x: Tensor) -> Tensor:
    x.mul_(2.0).sub_(1.0)
    return self.head(F.relu(self.stem(x)))


@case(stem=conv(3, 12), a=conv(6, 6), relu=make(nn.ReLU, inplace=True), head=conv(12, 4), free="stem a")
def pieces_changed_in_place(self: Any, x: Tensor) -> Tensor:
    a, b = torch.split(self.stem(x), 6, 1)
    a = self.relu(a.clone())
    return self.head(torch.cat([self.a(a), b], 1))


@case(stem=conv(3, 8), count=lambda: torch.tensor(2), head=conv(8, 4), free="stem")
def number_in_a_buffer(self: Any, x: Tensor) -> Tensor:
    for _ in range(int(self.count)):
        x = x * 0.5
    return self.head(F.relu(self.stem(x)))
