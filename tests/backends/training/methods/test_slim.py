"""Network slimming: one step of each penalty in closed form, and what the compiler makes of the scales."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.backends.training.loop import fit
from secateur.backends.training.methods.catalog import build
from secateur.backends.training.methods.frozen import Freezing
from secateur.backends.training.methods.slim import Slim, Slimming
from secateur.backends.training.recipe import Recipe
from secateur.compiler import zoo
from secateur.compiler.capture import trace
from secateur.compiler.errors import OptionError
from secateur.compiler.oracle import MaskedOriginal
from secateur.passes.prune.prune import Prune
from support.training import Residual, data, network, run_of

INPUT = torch.zeros(1, 3, 8, 8)
SCALES = [-0.5, -0.004, 0.0, 0.002, 0.03, 1.0, 2.0, 0.1]


def stepped(options: Slim, optimizer: str = "sgd", gradient: float = 0.25, progress: float = 0.0) -> Tensor:
    """Take a step of rate 0.1 on the scales of bn1, whose gradient is given."""
    module = network()
    kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    run = run_of(module, optimizer=kinds[optimizer](module.parameters(), lr=0.1))
    run.step = round(progress * run.epochs * run.steps_per_epoch)
    callback = Slimming(options)
    callback.begin(run)
    scale = module.bn1.weight
    scale.data = torch.tensor(SCALES)
    scale.grad = torch.full((8,), gradient)
    callback.before_step(run)
    run.optimizer.step()
    callback.after_step(run)
    return scale.detach()


def test_subgradient() -> None:
    start = torch.tensor(SCALES)
    assert torch.allclose(stepped(Slim(s=0.01)), start - 0.1 * (0.25 + 0.01 * start.sign()))


def test_smooth() -> None:
    start = torch.tensor(SCALES)
    slope = torch.where(start.abs() < 0.01, start / 0.01, start.sign())
    assert torch.allclose(stepped(Slim(s=0.01, penalty="smooth")), start - 0.1 * (0.25 + 0.01 * slope))


def test_proximal_makes_exact_zeros() -> None:
    found = stepped(Slim(s=0.03, penalty="proximal"), gradient=0.0)
    start = torch.tensor(SCALES)
    assert torch.allclose(found, start.sign() * (start.abs() - 0.003).clamp_min(0))
    assert found[3] == 0.0


def test_under_adam_the_penalty_is_what_it_is_under_sgd() -> None:
    """In the gradient it would be a full step of Adam's for every scale that has no other gradient."""
    start = torch.tensor(SCALES)
    assert torch.allclose(stepped(Slim(s=0.01), "adam", gradient=0.0), start - 0.1 * 0.01 * start.sign())
    wrong = stepped(Slim(s=0.01, decoupled=False), "adam", gradient=0.0)
    assert torch.allclose(wrong[5:], start[5:] - 0.1, atol=1e-4)


@pytest.mark.parametrize(("schedule", "weight"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_the_penalty_can_grow(schedule: Any, weight: float) -> None:
    start = torch.tensor(SCALES)
    found = stepped(Slim(s=0.01, schedule=schedule), gradient=0.0, progress=0.5)
    assert torch.allclose(found, start - 0.1 * 0.01 * weight * start.sign())


def test_scales_begin_where_asked_and_only_in_a_fresh_run() -> None:
    module = network()
    Slimming(Slim(init=0.5, exclude=("bn2",))).begin(run_of(module))
    assert module.bn1.weight.tolist() == [0.5] * 8
    assert module.bn2.weight.tolist() == [1.0] * 10
    resumed = network()
    run = run_of(resumed)
    run.epoch = 1
    Slimming(Slim(init=0.5)).begin(run)
    assert resumed.bn1.weight.tolist() == [1.0] * 8


def test_scales_gather_at_zero() -> None:
    def small(s: float) -> float:
        slim = Slimming(Slim(s=s, penalty="proximal"))
        history = fit(network(), data(), Recipe(epochs=8, batch_size=8, lr=0.05), callbacks=[slim])
        return history.epochs[-1]["small_scales"]

    assert small(1e-6) == 0.0
    assert small(2.0) > 0.3


def slimmed(epochs: int = 8) -> Residual:
    module = network()
    slim = Slimming(Slim(s=0.1, penalty="proximal"))
    fit(module, data(), Recipe(epochs=epochs, batch_size=8, lr=0.05), callbacks=[slim])
    return module


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.6, 0.95])
def test_exactly_so_many_of_the_smallest_scales_go_and_no_layer_is_emptied(ratio: float) -> None:
    torch.manual_seed(0)
    net = zoo.network("cifar-vgg11").build().eval()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for place, norm in enumerate(norms):
        nn.init.uniform_(norm.weight, 0.01 * place, 1.0)
    program = trace(net, torch.zeros(1, 3, 32, 32))
    result = Prune(criterion="bn-scale", scope="global", normalize="none", ratio=ratio).run(program)
    total, removed = result.stats["channels"], result.stats["removed"]
    assert total == sum(len(norm.weight) for norm in norms) + 10 + 3  # classes and colours, which stay
    assert removed == math.ceil(ratio * total - 1e-9)
    scales = torch.cat([norm.weight.detach() for norm in norms]).sort().values
    kept = [m for m in result.program.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert min(len(norm.weight) for norm in kept) >= 1
    least = torch.cat([norm.weight.detach() for norm in kept]).min()
    assert ratio == 0.95 or least == scales[int(removed)]


def test_predictions_before_and_after_removal_are_the_same() -> None:
    module = slimmed()
    pipeline = "prune{criterion=bn-scale scope=global normalize=none ratio=0.5}"
    compiled = secateur.compile(module, INPUT, pipeline=pipeline)
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    masked = MaskedOriginal(compiled.original, compiled.plan).run(x.double())
    compact = compiled.module.double().eval()(x.double())
    assert torch.equal(masked.argmax(1), compact.argmax(1))


def test_a_slimmed_network_is_slimmed_again() -> None:
    module: nn.Module = slimmed()
    sizes = [sum(p.numel() for p in module.parameters())]
    for _ in range(2):
        pipeline = "prune{criterion=bn-scale scope=global normalize=none ratio=0.3}"
        module = secateur.compile(module, INPUT, pipeline=pipeline).module
        fit(module, data(), Recipe(epochs=2, batch_size=8, lr=0.05), callbacks=[Slimming(Slim(s=1e-3))])
        sizes.append(sum(p.numel() for p in module.parameters()))
    assert sizes[0] > sizes[1] > sizes[2]


def test_absorbing_shifts_is_no_worse_than_dropping_them() -> None:
    module = slimmed()
    with torch.no_grad():
        for norm in (module.bn2,):
            norm.weight[:4] *= 1e-4
            norm.bias[:4] = 1.0
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    errors: list[float] = []
    for more in ("", ",absorb"):
        pipeline = f"prune{{criterion=bn-scale layers=conv2:0.4}}{more}"
        compact = secateur.compile(module, INPUT, pipeline=pipeline).module.eval()
        with torch.no_grad():
            errors.append(float((compact(x) - module.eval()(x)).square().mean()))
    assert errors[1] < 0.2 * errors[0]


def test_frozen_channels_stay_zero() -> None:
    module = network()
    with torch.no_grad():
        for tensor in (module.bn2.weight, module.bn2.bias):
            tensor[:3] = 0.0
    fit(module, data(), Recipe(epochs=2, batch_size=8, lr=0.1), callbacks=[Freezing()])
    assert not bool(module.bn2.weight[:3].any())
    assert not bool(module.bn2.bias[:3].any())
    assert bool((module.bn2.weight[3:] != 1.0).all())


def test_a_layer_may_be_frozen_whole() -> None:
    module = network()
    nn.init.zeros_(module.bn2.weight)
    history = fit(module, data(), Recipe(epochs=2, batch_size=8, lr=0.05), callbacks=[Freezing()])
    assert not bool(module.bn2.weight.any())
    assert history.epochs[-1]["frozen"] == 10


@pytest.mark.parametrize("text", ["slim{s=0}", "slim{width=0}", "slim{penalty=proximal decoupled=false}", "slim{s=x}"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(OptionError):
        build(text)


def test_a_network_without_norms_cannot_be_slimmed() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(256, 3))
    with pytest.raises(OptionError, match="no batch norms"):
        Slimming(Slim()).begin(run_of(plain))
