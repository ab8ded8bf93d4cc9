"""Soft filter pruning: what is zeroed, what comes back, and that the compact network is the masked one."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.backends.compile import Compiled
from secateur.backends.training.callback import Callback, Run
from secateur.backends.training.loop import fit
from secateur.backends.training.methods.catalog import build
from secateur.backends.training.methods.filters import Filters
from secateur.backends.training.methods.soft import Soft, SoftPruning, bound_rows
from secateur.backends.training.recipe import Recipe
from secateur.backends.training.splits import Share
from secateur.compiler.capture import trace
from secateur.compiler.errors import OptionError
from support.training import data, epoch_of, network, run_of, split


def trained(options: Soft, epochs: int = 2) -> tuple[nn.Module, SoftPruning]:
    module = network()
    run, callback = run_of(module, epochs=epochs), SoftPruning(options)
    callback.begin(run)
    for _ in range(epochs):
        epoch_of(run, [callback])
    return module, callback


def zero_rows(module: nn.Module, name: str) -> int:
    return int((module.get_parameter(f"{name}.weight").flatten(1) == 0).all(1).sum())


@pytest.mark.parametrize(("rate", "inner", "trunk"), [(0.1, 1, 0), (0.3, 3, 4), (0.55, 5, 8)])
def test_exactly_the_whole_filters_below_the_rate_are_zero(rate: float, inner: int, trunk: int) -> None:
    """10 inner channels; a trunk of 8, and 8 more that the padding adds: floor(10 r) and 2 floor(8 r)."""
    module, _ = trained(Soft(rate=rate))
    assert zero_rows(module, "conv2") == inner
    assert zero_rows(module, "conv3") == trunk
    norm = module.get_submodule("bn2")
    assert int(((norm.get_parameter("weight") == 0) & (norm.get_parameter("bias") == 0)).sum()) == inner


def test_rates_that_no_float_holds_are_rounded_as_they_are_meant() -> None:
    """int(40 * (1 - 0.9)) is 3 in floating point."""
    wide = nn.Sequential(nn.Conv2d(3, 40, 1), nn.ReLU(), nn.Conv2d(40, 20, 1), nn.ReLU(), nn.Conv2d(20, 2, 1))
    filters = Filters(trace(wide, torch.zeros(1, 3, 4, 4)), wide)
    rates = {block: 0.9 if "0" in group.layers else 0.1 for block, group in filters.blocks()}
    filters.zero(filters.smallest("l2", rates))
    assert (zero_rows(wide, "0"), zero_rows(wide, "2")) == (36, 2)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_smallest_go_by_the_norm_that_was_asked_for(norm: Any) -> None:
    wide = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 2, 1))
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.6], [5.0, 5.0]])  # l1: 1 < 1.2; l2: 0.85 < 1
    wide.get_parameter("0.weight").data.copy_(rows.view(3, 2, 1, 1))
    filters = Filters(trace(wide, torch.zeros(1, 2, 4, 4)), wide)
    gone = filters.smallest(norm, {block: 0.4 for block, _ in filters.blocks()})
    filters.zero(gone)
    zero = (wide.get_parameter("0.weight").flatten(1) == 0).all(1).tolist()
    assert zero == ([True, False, False] if norm == "l1" else [False, True, False])


def test_shortcuts_can_be_avoided() -> None:
    module, _ = trained(Soft(rate=0.5, shortcut="avoid"))
    assert zero_rows(module, "conv2") == 5
    assert zero_rows(module, "conv1") == zero_rows(module, "conv3") == 0


def test_layers_have_rates_of_their_own() -> None:
    module, _ = trained(Soft(rate=0, layers={"conv2": 0.2}))
    assert (zero_rows(module, "conv2"), zero_rows(module, "conv3")) == (2, 0)
    with pytest.raises(OptionError, match="conv9"):
        trained(Soft(layers={"conv9": 0.5}))


class Tokens(nn.Module):
    """A layer norm over a trunk, attention with a layer norm over queries and keys if asked for, an MLP."""

    def __init__(self, *, normalised: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm(8)
        self.qk, self.v, self.out = nn.Linear(8, 24), nn.Linear(8, 12), nn.Linear(12, 8)
        self.over = nn.LayerNorm(12) if normalised else nn.Identity()
        self.mlp, self.head = nn.Sequential(nn.Linear(8, 20), nn.GELU(), nn.Linear(20, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        q, k = (self.over(part).unflatten(-1, (2, 6)).transpose(1, 2) for part in self.qk(y).chunk(2, -1))
        v = self.v(y).unflatten(-1, (2, 6)).transpose(1, 2)
        x = x + self.out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return self.head((x + self.mlp(x)).mean(1))


def softened(module: nn.Module, options: Soft) -> Compiled:
    program = trace(module, torch.zeros(1, 3, 8, 8))
    fit(module, data(), Recipe(epochs=2, batch_size=8, lr=0.01), callbacks=[options.callback()], program=program)
    return secateur.compile(module, torch.zeros(1, 3, 8, 8), pipeline=options.pipeline)


def test_attention_loses_what_is_zeroed_and_layer_norms_are_left_alone() -> None:
    """A zero in a trunk takes part in the statistics of its layer norm: it could not go, and would only do harm."""
    module = Tokens()
    compact = softened(module, Soft(rate=0.4)).module
    assert zero_rows(module, "stem") == zero_rows(module, "out") == 0
    shapes = {name: tuple(p.shape) for name, p in compact.named_parameters() if name.endswith("weight")}
    assert shapes["qk.weight"] == (16, 8)  # two of six in every head, of queries and of keys
    assert shapes["v.weight"] == shapes["out.weight"][::-1] == (8, 8)
    assert shapes["mlp.0.weight"] == (12, 8)
    assert compact.training is False


def test_queries_and_keys_that_are_normalised_over_stay_and_values_go() -> None:
    module = Tokens(normalised=True)
    compact = softened(module, Soft(rate=0.4)).module
    assert compact.get_parameter("qk.weight").shape == (24, 8)
    assert compact.get_parameter("v.weight").shape == (8, 8)


def test_a_layer_whose_zeros_would_stay_is_told() -> None:
    with pytest.raises(OptionError, match="soft finds no filters to zero") as caught:
        softened(Tokens(), Soft(rate=0, layers={"stem": 0.5}))
    assert "zeros would stay in stem: it is part of the statistics of a normalisation" in str(caught.value.hint)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize(
    "text", ["soft", "soft{settle=0}", "soft{rate=0.5 revival=plain}", "soft{norm=l1 shortcut=avoid revival=none}"]
)
def test_the_compact_network_is_the_masked_one(text: str, ema: float | None) -> None:
    """Every prediction, through the loop and the compiler; of averaged weights too, whose filters are zero as well."""
    module = network()
    (method,) = build(text)
    program = trace(module, torch.zeros(1, 3, 8, 8))
    recipe = Recipe(epochs=3, batch_size=8, ema=ema)
    fit(module, data(), recipe, callbacks=[method.callback()], program=program)
    compiled = secateur.compile(module, torch.zeros(1, 3, 8, 8), pipeline=method.pipeline)
    assert compiled.report["verification"]["holds"]
    assert compiled.report["kept"]["params"] < 0.9
    ((x, _),) = split(24, seed=1).testing(24, Share())
    with torch.no_grad():
        masked, compact = module.eval()(x), compiled.module.eval()(x)
    assert torch.equal(masked.argmax(1), compact.argmax(1))
    assert torch.allclose(masked, compact, atol=1e-5)


def test_nothing_is_zeroed_before_its_time_and_in_between() -> None:
    module = network()
    run, callback = run_of(module, epochs=6), SoftPruning(Soft(rate=0.5, begin=2, interval=2, settle=0))
    callback.begin(run)
    zeros: list[bool] = []
    for _ in range(6):
        epoch_of(run, [callback])
        zeros.append("zeroed" in run.figures)
    assert zeros == [False, True, False, True, False, True]


def test_the_last_epoch_always_ends_with_zeros() -> None:
    module, _ = trained(Soft(rate=0.5, begin=9), epochs=3)
    assert zero_rows(module, "conv2") == 5


# What stays.


def dead_rows(module: nn.Module) -> tuple[list[bool], ...]:
    """Which filters of every convolution are zero, and which channels of every norm have neither scale nor shift."""
    with torch.no_grad():
        found = [(p.flatten(1) == 0).all(1) for p in (module.get_parameter(f"conv{i}.weight") for i in (1, 2, 3))]
        for i in (1, 2, 3):
            found.append((module.get_parameter(f"bn{i}.weight") == 0) & (module.get_parameter(f"bn{i}.bias") == 0))
    return tuple(rows.tolist() for rows in found)


@pytest.mark.parametrize("options", [Soft(rate=0.5, settle=0.4), Soft(rate=0.5, settle=0, revival="none")])
def test_what_stays_zero_is_so_after_every_step(options: Soft) -> None:
    """Under momentum and weight decay; of five epochs, the last two settle."""
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    run, callback, seen = run_of(module, epochs=5, optimizer=optimizer), SoftPruning(options), list[Any]()

    class Watch(Callback):
        def after_step(self, run: Run) -> None:
            seen.append(dead_rows(run.module))

    callback.begin(run)
    chosen: list[Any] = []
    for _ in range(5):
        epoch_of(run, [callback, Watch()])
        chosen.append(dead_rows(module))
    assert seen[18:] == 12 * [chosen[2]]
    assert chosen[2:] == 3 * [chosen[2]]
    assert any(map(any, chosen[2]))
    assert (seen[11] == chosen[0]) == (options.revival == "none")


@pytest.mark.parametrize(
    ("epochs", "settle", "last"), [(1, 0.9, 1), (2, 0.2, 1), (5, 0.2, 4), (10, 0.3, 7), (10, 0, 10)]
)
def test_whole_epochs_settle_and_one_at_least_comes_before(epochs: int, settle: float, last: int) -> None:
    module = network()
    run, callback = run_of(module, epochs=epochs), SoftPruning(Soft(rate=0.5, begin=99, settle=settle))
    callback.begin(run)
    chosen: list[bool] = []
    for _ in range(epochs):
        before = callback.gone
        epoch_of(run, [callback])
        chosen.append(callback.gone is not before)
    assert [number for number, new in enumerate(chosen, 1) if new] == [last]


# What comes back.


def after_masking(options: Soft) -> tuple[nn.Module, SoftPruning, Any, dict[str, Tensor]]:
    module = network()
    run, callback = run_of(module, epochs=9), SoftPruning(options)
    callback.begin(run)
    run.module.train()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    run.figures = {}
    callback.after_epoch(run)
    run.epoch += 1
    return module, callback, run, before


def test_decay_brings_filters_back_smaller() -> None:
    module, callback, run, before = after_masking(Soft(rate=0.5, keep=0.25))
    assert zero_rows(module, "conv2") == 5
    gone = (module.get_parameter("conv2.weight").flatten(1) == 0).all(1)
    callback.before_epoch(run)
    for name in ("conv2.weight", "bn2.weight", "bn2.bias"):
        now, then = module.get_parameter(name), before[name]
        assert torch.allclose(now[gone], 0.25 * then[gone])
        assert torch.equal(now[~gone], then[~gone])


def gradient_norms(options: Soft, shift: float) -> tuple[Tensor, Tensor]:
    """Norms of the gradients of zeroed and of live filters of a layer in front of norm and ReLU."""
    module, callback, run, _ = after_masking(options)
    gone = (module.get_parameter("conv2.weight").flatten(1) == 0).all(1)
    callback.before_epoch(run)
    with torch.no_grad():
        module.get_parameter("bn2.bias").fill_(shift)
    x, labels = next(iter(split().training(0, 24, Share(), seed=0, augment="none")))
    nn.functional.cross_entropy(module(x), labels).backward()
    callback.before_step(run)
    norms = module.get_parameter("conv2.weight").grad
    assert norms is not None
    rows = norms.flatten(1).norm(dim=1)
    return rows[gone], rows[~gone]


def test_plain_zeros_get_no_gradient_or_far_too_much() -> None:
    dead, _ = gradient_norms(Soft(rate=0.5, revival="plain"), shift=-1.0)
    assert float(dead.max()) == 0.0
    huge, live = gradient_norms(Soft(rate=0.5, revival="plain"), shift=0.5)
    assert float(huge.mean() / live.mean()) > 30  # 1 / sqrt(eps) is 316


def test_bounded_zeros_get_no_more_than_others() -> None:
    bounded, live = gradient_norms(Soft(rate=0.5, revival="bounded"), shift=0.5)
    assert float(bounded.max()) <= float(live.mean()) * (1 + 1e-5)
    assert float(bounded.max()) > 0


def test_bound_rows_leaves_small_ones_alone() -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.06, 0.08], [1.0, 0.0]])
    bound_rows(gradient, torch.tensor([True, False, True, False]).view(-1, 1))
    assert torch.allclose(gradient, torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.06, 0.08], [1.0, 0.0]]))


def test_momentum_can_be_forgotten() -> None:
    def buffers(momentum: Any) -> Tensor:
        module, callback = network(), SoftPruning(Soft(rate=0.5, momentum=momentum))
        run = run_of(module, epochs=3)
        callback.begin(run)
        epoch_of(run, [callback])
        gone = (module.get_parameter("conv2.weight").flatten(1) == 0).all(1)
        return run.optimizer.state[module.get_parameter("conv2.weight")]["momentum_buffer"][gone]

    assert bool(buffers("keep").any())
    assert not bool(buffers("reset").any())


def test_what_came_back_is_counted() -> None:
    module, callback = network(), SoftPruning(Soft(rate=0.5, keep=1.0))
    run = run_of(module, epochs=9)
    callback.begin(run)
    epoch_of(run, [callback])
    first = callback.gone
    epoch_of(run, [callback])
    assert first is not None
    assert callback.gone is not None
    assert run.figures["revived"] == float((first & ~callback.gone).sum())
    assert run.figures["overlap"] == pytest.approx(float((first & callback.gone).sum() / first.sum()))
    assert run.figures["zeroed"] == float(callback.gone.sum())


def test_state_survives_an_interruption() -> None:
    _, callback, _, _ = after_masking(Soft(rate=0.5))
    again = SoftPruning(callback.options)
    again.load_state(callback.state())
    assert again.gone is not None
    assert callback.gone is not None
    assert np.array_equal(again.gone, callback.gone)
    assert all(torch.equal(again.saved[name], t) for name, t in callback.saved.items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("soft{rate=1}", "rate=1"),
        ("soft{rate=0}", "zeroes nothing"),
        ("soft{begin=0}", "begin=0"),
        ("soft{interval=0}", "interval=0"),
        ("soft{keep=2}", "keep=2"),
        ("soft{settle=1}", "settle=1"),
        ("soft{norm=l3}", "l3"),
        ("sift", "there is no training method 'sift'"),
    ],
)
def test_nonsense_is_refused(text: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        build(text)
