"""Layers come back as they were, and what cannot is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from secateur.backends.source.emit import emit_source, emitted_state
from secateur.compiler.errors import CompilerError
from support.emitted import IMAGE, check, run_source, trace


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=1, groups=2, padding_mode="circular"),
        nn.Conv2d(4, 8, 3, padding="same"),
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, bias=False),
        nn.BatchNorm2d(4, eps=1e-3, momentum=None, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4, affine=True),
        nn.LayerNorm([16, 16]),
        nn.LayerNorm(16, elementwise_affine=False, eps=1e-6),
        nn.LocalResponseNorm(3),
        nn.AvgPool2d(2),
        nn.AvgPool2d((2, 1), stride=1, count_include_pad=False),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.AdaptiveAvgPool2d((None, 7)),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.PReLU(4),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Hardtanh(-2.0, 2.0),
        nn.GELU(approximate="tanh"),
        nn.Softmax(dim=1),
        nn.Softplus(),
        nn.Dropout(0.3),
        nn.PixelShuffle(2),
        nn.ZeroPad2d((1, 0, 2, 0)),
        nn.ConstantPad2d(1, 0.5),
        nn.Flatten(),
        nn.Unflatten(1, (2, 2)),
        nn.ChannelShuffle(2),
        nn.Identity(),
        nn.Linear(16, 3, bias=False),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers(layer: nn.Module) -> None:
    program = trace(nn.Sequential(nn.Conv2d(3, 4, 1), layer), IMAGE)
    text = emit_source(program)
    model = run_source(text).eval()
    assert repr(model[1]) == repr(layer)
    model.load_state_dict(emitted_state(program))
    x = torch.rand(IMAGE)
    assert torch.equal(model(x), program.module(x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(16, 6, bidirectional=True, batch_first=True),
        nn.LSTM(16, 6, 2, bias=False, proj_size=3, dropout=0.2),
        nn.GRU(16, 6, 2),
        nn.RNN(16, 6, nonlinearity="relu"),
        nn.RNN(16, 6),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers(layer: nn.Module) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.layer = nn.Conv2d(3, 4, 1), layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, _ = self.layer(self.conv(x).flatten(0, 1))
            return y

    program = trace(Recurrent().eval(), IMAGE)
    model = run_source(emit_source(program)).eval()
    assert repr(model.layer) == repr(layer)
    model.load_state_dict(emitted_state(program))
    x = torch.rand(IMAGE)
    assert torch.equal(model(x), program.module.eval()(x))


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_padding_that_was_changed_afterwards(mode: Any) -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)
    conv.padding, conv.dilation = (2, 2), (2, 2)  # as segmentation models do to their encoders
    program = trace(nn.Sequential(conv), IMAGE)
    if mode == "reflect":  # pads by 1 still
        with pytest.raises(CompilerError, match="_reversed_padding_repeated_twice"):
            emit_source(program)
        return
    model = run_source(emit_source(program))
    model.load_state_dict(emitted_state(program))
    x = torch.rand(IMAGE)
    assert torch.equal(model(x), conv(x))


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Far(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x / torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        return torch.special.expit(x) + torch.fft.fft2(x).real


def test_functions_of_torch_that_live_further_down() -> None:
    program = trace(Far(), IMAGE)
    text = emit_source(program)
    assert "torch.linalg.vector_norm(" in text
    assert "torch.special.expit(" in text
    x = torch.rand(IMAGE)
    assert torch.equal(run_source(text)(x), program.module(x))


def test_refusals_name_the_culprit() -> None:
    program = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(0, 1), nn.TransformerEncoderLayer(16, 2, 8)), IMAGE)
    with pytest.raises(CompilerError, match=r"layer 2 \(TransformerEncoderLayer\)"):
        emit_source(program)
    wrong = nn.Conv2d(3, 4, 1)
    wrong.weight = nn.Parameter(torch.zeros(2, 3, 1, 1))
    with pytest.raises(CompilerError, match=r"layer 0 .*\[2, 3, 1, 1\]"):
        emit_source(trace(nn.Sequential(wrong), IMAGE))
    program = trace(nn.Sequential(nn.ReLU()), IMAGE)
    next(n for n in program.graph.nodes if n.op == "call_module").target = "0"
    node = next(n for n in program.graph.nodes if n.op == "call_module")
    with program.graph.inserting_after(node):
        extra = program.graph.call_function(check, (node,))
    node.replace_all_uses_with(extra)
    extra.args = (node,)
    with pytest.raises(CompilerError, match="cannot be called from a file that needs only torch"):
        emit_source(program)
