"""Retraining inside a study: images are parted, and what was pruned recovers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from secateur.backends import inputs
from secateur.backends.training.retrain import Retraining
from secateur.backends.training.splits import Share
from secateur.compiler.capture import trace
from secateur.compiler.errors import OptionError, SourceError
from secateur.passes.prune.prune import Prune
from secateur.passes.prune.sensitivity import read

Invoke = Callable[..., tuple[int, str, str]]
ALONE = Share()


def retraining(measured: int = 300, epochs: int = 2, seed: int = 0) -> Retraining:
    return Retraining.of(inputs.load("digits"), "digits", epochs, lr=0.01, measured=measured, seed=seed)


def rows(images: Tensor) -> set[tuple[float, ...]]:
    return {tuple(image.flatten().tolist()) for image in images}


def test_images_are_measured_on_or_trained_on_never_both() -> None:
    from secateur.compiler import examples

    made = retraining()
    held = list(made.measured())
    shown = torch.cat([images for images, _ in held])
    counts = torch.bincount(torch.cat([labels for _, labels in held if labels is not None]))
    assert len(shown) == 300
    assert int(counts.max() - counts.min()) <= 1
    train = made.data.train
    trained = torch.cat([x for x, _ in train.training(0, 1, ALONE, seed=0, augment="none")])
    digits = examples.load("digits")
    assert len(trained) == len(digits.train_images) - 300 == made.settings["images"]
    assert not rows(shown) & rows(trained)
    assert rows(shown) | rows(trained) == rows(digits.train_images)
    assert torch.equal(shown, torch.cat([images for images, _ in retraining().measured()]))
    assert not torch.equal(shown, torch.cat([images for images, _ in retraining(seed=1).measured()]))


def test_a_copy_is_trained_and_always_the_same() -> None:
    model = inputs.load("digits")
    pruned = Prune(ratio=0.5).run(trace(model.module, model.example_inputs())).program
    before = {name: tensor.clone() for name, tensor in pruned.tensors()}
    said: list[str] = []
    made = retraining()
    first, second = made(pruned, said.append), made(pruned)
    assert any(text.startswith("epoch 2 of 2") for text in said)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.tensors())
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first.tensors(), second.tensors(), strict=True))
    assert right(first.module.eval(), made) > right(pruned.module.eval(), made) + 100


def right(module: Callable[[Tensor], Tensor], made: Retraining) -> int:
    with torch.no_grad():
        return sum(int((module(x).argmax(1) == y).sum()) for x, y in made.measured() if y is not None)


def test_what_cannot_be() -> None:
    with pytest.raises(SourceError, match="all 1,347 training images are to be measured on, and none are left"):
        retraining(measured=2000)
    with pytest.raises(OptionError, match="epochs is 0"):
        retraining(epochs=0)


def scanned(invoke: Invoke, *words: str) -> Sequence[float]:
    common = ("--ratios", "0.75", "--images", "200", "--threads", "1", "-o", "x.csv")
    code, _, err = invoke("sensitivity", "digits", "--data", "digits", *common, *words)
    assert code == 0, err
    found = [row.top1 for row in read("x.csv").rows]
    Path("x.csv").unlink()
    return found


def test_a_scan_retrains_before_it_measures(invoke: Invoke) -> None:
    plain, retrained = scanned(invoke), scanned(invoke, "--retrain", "2", "--lr", "0.01")
    assert min(plain) < 20
    assert min(retrained) > 30
    assert sum(retrained) > sum(plain)


def test_a_scan_of_other_epochs_or_without_labels_is_refused(invoke: Invoke) -> None:
    words = ("sensitivity", "digits", "--data", "digits", "--ratios", "0.5", "--images", "1340", "--threads", "1")
    words = (*words, "-o", "x.csv")
    code, out, err = invoke(*words, "--retrain", "1")
    assert code == 0, err
    assert "trained for 1 epoch on 7 other images, the dense model was not" in out
    code, _, err = invoke(*words, "--retrain", "2")
    assert code == 2
    assert "retrain was {'epochs': 1" in err
    code, _, err = invoke(*words, "--retrain", "1", "--no-labels")
    assert code == 2
    assert "networks cannot be retrained without labels" in err


def test_class_folders_are_parted(tmp_path: Path) -> None:
    from PIL import Image

    for place, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        for index in range(6):
            Image.new("L", (8, 8), 100 * place + index).save(tmp_path / name / f"{index}.png")
    made = Retraining.of(inputs.load("digits"), str(tmp_path), 1, measured=4, preprocess="mean=0,std=1")
    assert (len(made.data.train), len(made.measured())) == (8, 4)
    assert made.measured().classes == ("a", "b")
    first, *_ = made.measured()
    assert not rows(first[0]) & rows(torch.cat([x for x, _ in made.data.train.testing(8, ALONE)]))
