"""Quantization-aware training: fake quantization trains, and converts to what it stood for."""

import torch
import torch.nn.functional as F
from torch import nn

import secateur
from secateur.compiler import examples
from secateur.compiler.capture import trace
from secateur.compiler.quantized import FakeQuantizedConv2d, QuantizedConv2d
from secateur.passes.quantize.convert import Convert
from secateur.passes.quantize.quantize import Quantize

FOLD = "eliminate-identity,fold-constants,fold-bn"


def test_trains_and_converts_to_what_it_stood_for() -> None:
    digits = examples.load("digits")
    images, labels = digits.train_images[:256], digits.train_labels[:256]
    pipeline = FOLD + ",quantize{weight-bits=7 train}"
    compiled = secateur.compile(digits.module, torch.zeros(1, 1, 8, 8), pipeline=pipeline, data=[images])
    module = compiled.module.train()
    assert any(isinstance(m, FakeQuantizedConv2d) for m in module.modules())
    before = {name: p.clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(4):
        loss = F.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(before[name], p) for name, p in module.named_parameters())

    final = secateur.compile(compiled.program, pipeline="convert")
    layer = final.module.get_submodule("conv1")
    assert isinstance(layer, QuantizedConv2d)
    assert int(layer.weight.abs().max()) == 63
    trained, converted = (m.eval()(digits.test_images) for m in (module, final.module))
    assert (trained.argmax(1) == converted.argmax(1)).float().mean() > 0.99
    torch.testing.assert_close(converted, trained, rtol=0, atol=0.05 * trained.abs().max().item())


def test_the_emitted_file_trains_too(tmp_path_factory: object) -> None:
    del tmp_path_factory
    program = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), torch.zeros(1, 3, 8, 8))
    fake = Quantize(train=True, weight_bits="8", data=[torch.randn(4, 3, 8, 8)]).run(program).program
    from secateur.backends.source.emit import emit_source

    space: dict[str, object] = {"__name__": "emitted"}
    exec(emit_source(fake), space)
    model = space[space["__all__"][0]]()  # pyright: ignore[reportIndexIssue, reportCallIssue]
    assert isinstance(model, nn.Module)
    model.load_state_dict(fake.module.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x), fake.module(x))
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_nothing_to_convert() -> None:
    result = Convert().run(trace(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.zeros(1, 3, 8, 8)))
    assert not result.changed
    assert "there is no fake quantization" in result.remarks[0].reason
