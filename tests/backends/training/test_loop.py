"""The loop: it learns, it resumes to the same bits, and says early what is wrong."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor, nn

from secateur.backends.training.callback import Callback, Run
from secateur.backends.training.checkpoint import Checkpoints, pack, unpack
from secateur.backends.training.data import Data
from secateur.backends.training.ema import Average
from secateur.backends.training.loop import History, fit, make_optimizer
from secateur.backends.training.recipe import Recipe
from secateur.compiler.errors import CompilerError, OptionError, SourceError
from support.training import data, epoch_of, network, run_of, split

RECIPE = Recipe(epochs=4, batch_size=8, lr=0.05)


def plain(history: History) -> list[dict[str, float]]:
    return [{k: v for k, v in f.items() if k not in ("seconds", "waited")} for f in history.epochs]


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


class KilledError(Exception):
    pass


class Killer(Callback):
    """Ends a run in the middle of an epoch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Run) -> None:
        if run.step == self.step:
            raise KilledError


class Counting(Callback):
    """Has a state of its own, which decides the weights."""

    def __init__(self) -> None:
        self.count = torch.zeros(())

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        self.count += 1
        run.module.get_parameter("fc.bias").add_(0.001 * self.count)

    def state(self) -> dict[str, Tensor]:
        return {"count": self.count}

    def load_state(self, state: Any) -> None:
        self.count = state["count"].clone()


def test_it_learns() -> None:
    module = network()
    history = fit(module, data(), RECIPE)
    assert history.dense["top1"] < 70
    assert history.epochs[-1]["top1"] == 100
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    assert [f["epoch"] for f in history.epochs] == [1, 2, 3, 4]
    assert not module.training


@pytest.mark.parametrize("killed", [1, 7, 13, 24])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path, killed: int, optimizer: Any) -> None:
    recipe = Recipe(epochs=4, batch_size=8, lr=0.05, optimizer=optimizer, ema=0.9, keep="best", warmup=1, clip=1.0)
    whole, broken = network(), network()
    wanted = fit(whole, data(), recipe, callbacks=[Counting()])
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(KilledError):
        fit(broken, data(), recipe, callbacks=[Counting(), Killer(killed)], checkpoints=checkpoints)
    torch.manual_seed(99)  # whatever happened in between
    resumed = network(seed=5)
    if killed < 6:  # nothing was finished: it begins anew, from the same weights
        resumed = network()
    told: list[float] = []
    found = fit(
        resumed,
        data(),
        recipe,
        callbacks=[Counting(), Killer(-1)],
        checkpoints=checkpoints,
        log=lambda figures: told.append(figures["epoch"]),
    )
    assert plain(found) == plain(wanted)
    assert found.best == wanted.best
    assert same(resumed, whole)
    assert told == [1, 2, 3, 4]


def half(scale: float) -> Fabric:
    """What ``16-mixed`` is on a GPU, on the CPU; the scale of the loss changes in every epoch."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)
    return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


HALF = Recipe(epochs=4, batch_size=8, lr=0.05, precision="16-mixed")


def test_in_float16_too_a_killed_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    whole, broken, resumed = network(), network(), network(seed=5)
    first, last = half(256.0), half(16.0)
    fit(whole, data(), HALF, fabric=first)
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(KilledError):
        fit(broken, data(), HALF, callbacks=[Killer(13)], fabric=half(256.0), checkpoints=checkpoints)
    fit(resumed, data(), HALF, callbacks=[Killer(-1)], fabric=last, checkpoints=checkpoints)
    assert same(resumed, whole)
    assert last.strategy.precision.state_dict() == first.strategy.precision.state_dict()


@pytest.mark.parametrize("clip", [None, 1e9])
def test_callbacks_see_gradients_without_the_scale_of_the_loss(clip: float | None) -> None:
    class Watching(Callback):
        def __init__(self) -> None:
            self.found: list[Tensor] = []

        def before_step(self, run: Run) -> None:
            if not self.found:
                self.found = [p.grad.clone() for p in run.module.parameters() if p.grad is not None]

    plain, scaled = Watching(), Watching()
    fit(network(), data(), replace(RECIPE, epochs=1), callbacks=[plain])
    fit(network(), data(), replace(HALF, epochs=1, clip=clip), callbacks=[scaled], fabric=half(256.0))
    for a, b in zip(plain.found, scaled.found, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)


def test_a_scale_that_overflows_skips_steps_and_does_not_end_the_run() -> None:
    fabric = half(2.0**24)
    history = fit(network(), data(), replace(HALF, clip=1.0), fabric=fabric)
    assert history.epochs[-1]["top1"] > 70
    assert fabric.strategy.precision.state_dict()["scale"] < 2.0**24


@pytest.mark.filterwarnings("ignore:.*meta parameter")
def test_what_callbacks_take_back_lies_where_the_network_does() -> None:
    class Keeping(Callback):
        def __init__(self) -> None:
            self.kept: Mapping[str, Tensor] = {"mean": torch.zeros(2)}

        def state(self) -> Mapping[str, Tensor]:
            return self.kept

        def load_state(self, state: Mapping[str, Tensor]) -> None:
            self.kept = state

    module, callback = network(), Keeping()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    state = pack(module, optimizer, [callback])
    unpack(state, module.to("meta"), optimizer, [callback])  # stands for an accelerator
    assert callback.kept["mean"].device.type == "meta"


def test_the_callers_random_numbers_are_left_alone() -> None:
    module, images = network(), data()
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    fit(module, images, Recipe(epochs=1, batch_size=8))
    assert torch.equal(torch.rand(3), wanted)


def test_the_seed_decides() -> None:
    one, other, third = network(), network(), network()
    for module, seed in ((one, 0), (other, 0), (third, 1)):
        fit(module, data(), Recipe(epochs=1, batch_size=8), seed=seed)
    assert same(one, other)
    assert not same(one, third)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    fit(network(), data(), Recipe(epochs=1, batch_size=8), checkpoints=checkpoints)
    with pytest.raises(OptionError, match="another recipe"):
        fit(network(), data(), Recipe(epochs=2, batch_size=8), checkpoints=checkpoints)
    with pytest.raises(OptionError, match="another network"):
        fit(network(width=6), data(), Recipe(epochs=1, batch_size=8), checkpoints=checkpoints)


def test_the_best_weights_are_kept_if_asked_for() -> None:
    class Spoiling(Callback):
        @torch.no_grad()
        def after_epoch(self, run: Run) -> None:
            if run.epoch == 3:
                run.module.get_parameter("fc.weight").zero_()

    good, bad = network(), network()
    recipe = Recipe(epochs=4, batch_size=8, lr=0.05, keep="best")
    history = fit(good, data(), recipe, callbacks=[Spoiling()])
    fit(bad, data(), RECIPE, callbacks=[Spoiling()])
    assert history.best is not None
    assert history.best < 4
    assert bool(good.fc.weight.any())
    assert not bool(bad.fc.weight.any())


def test_a_loss_that_is_no_number_ends_the_run_and_says_where() -> None:
    with pytest.raises(CompilerError, match=r"loss is (nan|inf).* in epoch 1, step \d+, at a learning rate of"):
        fit(network(), data(), Recipe(epochs=2, batch_size=8, lr=1e30, schedule="constant"))


def test_too_many_classes_are_told_before_the_first_step() -> None:
    module = network()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises(SourceError, match="4 classes and the model 3 outputs") as caught:
        fit(module, data(classes=4), RECIPE)
    assert "`secateur train --new-head` gives it as many" in str(caught.value.hint)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_images_that_the_network_does_not_take_are_one_message() -> None:
    with pytest.raises(CompilerError, match=r"does not take these images: .*to have 5 channels"):
        fit(nn.Sequential(nn.Conv2d(5, 3, 1), nn.Flatten()), data(), RECIPE)


def test_a_model_that_is_no_classifier_is_refused() -> None:
    with pytest.raises(CompilerError, match="a row of logits per image"):
        fit(nn.Conv2d(3, 3, 1), data(), RECIPE)


def test_averaged_weights_are_what_is_evaluated_and_kept() -> None:
    def averages(decay: float, steps: int) -> list[float]:
        return [min(decay, (1 + n) / (10 + n)) for n in range(1, steps + 1)]

    class Remember(Callback):
        seen: list[Tensor]

        def begin(self, run: Run) -> None:
            self.seen = [run.module.get_parameter("fc.bias").detach().clone()]

        def after_step(self, run: Run) -> None:
            self.seen.append(run.module.get_parameter("fc.bias").detach().clone())

    module, remember = network(), Remember()
    fit(module, data(), Recipe(epochs=2, batch_size=8, lr=0.05, ema=0.8), callbacks=[remember])
    mean = remember.seen[0]
    for value, decay in zip(remember.seen[1:], averages(0.8, 12), strict=True):
        mean = decay * mean + (1 - decay) * value
    assert torch.allclose(module.fc.bias, mean, atol=1e-6)


def test_what_callbacks_have_at_zero_is_zero_in_the_average_while_it_is_looked_at() -> None:
    class First(Callback):
        def averaged(self, run: Run) -> None:
            run.module.get_parameter("fc.bias").data[0] = 0.0

    module = network()
    run, average = run_of(module), Average(0.9, [First()])
    average.begin(run)
    epoch_of(run, [average])
    mean = {name: tensor.clone() for name, tensor in average.mean.items()}
    weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    with average.swapped(run):
        assert module.fc.bias[0] == 0
        assert torch.equal(module.fc.bias[1:], mean["fc.bias"][1:])
        assert torch.equal(module.fc.weight, mean["fc.weight"])
    assert all(torch.equal(parameter, weights[name]) for name, parameter in module.named_parameters())
    assert all(torch.equal(average.mean[name], tensor) for name, tensor in mean.items())


def test_a_teacher_is_learnt_from() -> None:
    teacher = network(seed=1)
    fit(teacher, data(), RECIPE)
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    wrong = split()
    wrong.labels.copy_((wrong.labels + 1) % 3)  # without the teacher it could only learn what is wrong
    images = Data(wrong, split(24, seed=1), {"data": "noise"})
    student = network(seed=2)
    history = fit(student, images, Recipe(epochs=6, batch_size=8, lr=0.05, distill=1.0), teacher=teacher)
    assert history.epochs[-1]["top1"] == 100
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())


def test_gradients_are_clipped() -> None:
    norms: list[float] = []

    class Look(Callback):
        def before_step(self, run: Run) -> None:
            grads = [p.grad for p in run.module.parameters() if p.grad is not None]
            norms.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))

    fit(network(), data(), Recipe(epochs=1, batch_size=8, clip=0.01), callbacks=[Look()])
    assert max(norms) <= 0.01 * (1 + 1e-4)


def test_norms_and_biases_can_be_left_out_of_weight_decay() -> None:
    module = network()
    groups = make_optimizer(module, Recipe(decay_norms=False)).param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
    assert {p.ndim for p in groups[0]["params"]} == {2, 4}
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert len(make_optimizer(module, Recipe()).param_groups) == 1


@pytest.mark.parametrize("change", [{"precision": "bf16-mixed"}, {"channels_last": True}, {"nesterov": True}])
def test_other_ways_to_compute_learn_as_well(change: dict[str, Any]) -> None:
    history = fit(network(), data(), Recipe(epochs=5, batch_size=8, lr=0.05, **change))
    assert history.epochs[-1]["top1"] > 90
