"""The embedded example: its size, its data, its accuracy, and the accuracy function."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.compiler import examples
from secateur.compiler.errors import SourceError
from secateur.compiler.examples import train_digits

FOLDER = Path(examples.__file__).parent


def test_names_need_no_torch() -> None:
    code = "import sys\nfrom secateur.compiler import examples\nprint(examples.names(), 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "('digits',) False"


def test_the_files_are_small_and_hold_no_pickle() -> None:
    files = [FOLDER / "digits.npz", FOLDER / "digits.safetensors"]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    assert {file.suffix for file in FOLDER.iterdir() if file.is_file()} == {".py", ".npz", ".safetensors"}


def test_the_data_is_split_and_normalised() -> None:
    example = examples.load("digits")
    assert example.train_images.shape == (1347, *example.input_shape[1:])
    assert example.test_images.shape == (450, *example.input_shape[1:])
    assert example.train_labels.shape == (1347,)
    assert example.test_labels.shape == (450,)
    assert example.classes == tuple("0123456789")
    # Stratified: each class keeps its share.
    train, test = (labels.bincount() / len(labels) for labels in (example.train_labels, example.test_labels))
    assert torch.allclose(train, test, atol=0.01)
    assert abs(float(example.train_images.mean())) < 1e-3
    assert abs(float(example.train_images.std()) - 1) < 1e-3
    levels = (example.test_images * example.std[0] + example.mean[0]) * 16
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert (int(levels.round().min()), int(levels.round().max())) == (0, 16)


def test_the_weights_are_accurate() -> None:
    example = examples.load("digits")
    assert not example.module.training
    assert 100_000 < sum(p.numel() for p in example.module.parameters()) < 200_000
    assert examples.accuracy(example.module, example.test_images, example.test_labels) > 98.5


def test_load_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = examples.load("digits"), examples.load("digits")
    assert torch.equal(torch.get_rng_state(), before)
    states = zip(first.module.state_dict().values(), second.module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


def test_unknown_example() -> None:
    for function in (examples.load, examples.build, examples.weights_file):
        with pytest.raises(SourceError, match="no embedded example is called 'cats'\n  try: one of: digits"):
            function("cats")


class Threshold(nn.Module):
    """Class 1 above zero, with a dtype to follow and nothing to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(1, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float64
        assert torch.is_inference_mode_enabled()
        assert not self.training
        return torch.cat([self.get_buffer("zero").expand(len(x), 1), x], dim=1)


def test_accuracy_counts_in_percent_over_batches_and_follows_the_dtype() -> None:
    images, labels = torch.tensor([[-1.0], [2.0], [3.0], [-4.0], [5.0]]), torch.tensor([0, 1, 0, 0, 1])
    assert examples.accuracy(Threshold(), images, labels, batch_size=2) == 80.0


def test_accuracy_puts_every_training_flag_back() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    module.train()
    module[2].eval()
    examples.accuracy(module, torch.rand(4, 4), torch.zeros(4, dtype=torch.int64))
    assert [m.training for m in module.modules()] == [True, True, True, False]
    assert torch.equal(module[2].get_buffer("running_mean"), torch.zeros(2))


def test_accuracy_refuses_nothing_and_uneven_counts() -> None:
    with pytest.raises(SourceError, match=re.escape("cannot measure accuracy on 0 images with 0 labels")):
        examples.accuracy(nn.Identity(), torch.zeros(0, 2), torch.zeros(0))
    with pytest.raises(SourceError, match="on 2 images with 1 labels"):
        examples.accuracy(nn.Identity(), torch.zeros(2, 2), torch.zeros(1))


def test_augmentation_keeps_shape_range_and_background() -> None:
    images = examples.load("digits").train_images[:16]
    changed = train_digits.augment(images)
    assert changed.shape == images.shape
    assert not torch.equal(changed, images)
    assert images.min() - 1e-5 <= changed.min()
    assert changed.max() <= images.max() + 1e-5
    blank = torch.full_like(images, float(images.min()))
    assert torch.allclose(train_digits.augment(blank), blank)
