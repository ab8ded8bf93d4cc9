"""CIFAR's own files, and files that only look like them."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.backends.inputs import load
from secateur.backends.training import cifar
from secateur.backends.training.data import open_data
from secateur.backends.training.splits import Share
from secateur.compiler.errors import SourceError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    generator = np.random.default_rng(0)
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        content = {b"data": generator.integers(0, 256, (4, 3072), dtype=np.uint8), b"labels": [0, 1, 2, 9]}
        (root / name).write_bytes(pickle.dumps(content, protocol=2))
    names = [f"class {n}".encode() for n in range(10)]
    (root / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return root


def test_both_splits(folder: Path) -> None:
    images, labels, classes = cifar.read(folder, train=True)
    assert images.shape == (20, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 1, 2, 9] * 5
    assert classes[9] == "class 9"
    assert len(cifar.read(folder, train=False)[0]) == 4


@pytest.mark.parametrize("at", ["", "cifar-10-batches-py"])
def test_the_folder_and_the_one_around_it_will_do(folder: Path, at: str) -> None:
    data = open_data(load("cifar-resnet20{depth=8}"), str(folder.parent / at))
    assert (len(data.train), len(data.test), len(data.train.classes)) == (20, 4, 10)
    assert data.train.preprocess.mean == (0.4914, 0.4822, 0.4465)


def test_a_limit_takes_classes_in_balance(folder: Path) -> None:
    data = open_data(load("cifar-resnet20{depth=8}"), str(folder), limit=8)
    labels = [label for _, y in data.train.testing(8, Share()) for label in y.tolist()]
    assert sorted(labels) == [0, 0, 1, 1, 2, 2, 9, 9]


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("made-by-a-pickle",)


def test_pickles_that_run_code_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": Harmful()}))
    with pytest.raises(SourceError, match="mkdir"):
        cifar.read(folder, train=False)
    assert not (tmp_path / "made-by-a-pickle").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps({b"data": [1, 2]}), pickle.dumps([1])])
def test_damaged_files_are_one_message(folder: Path, content: bytes) -> None:
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(SourceError, match="not a file of CIFAR images"):
        cifar.read(folder, train=False)
