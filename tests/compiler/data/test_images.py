"""Folders and embedded examples as batches: layout, labels, order, and what every mistake is told."""

import importlib
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.compiler import examples, vision
from secateur.compiler.data.images import ImageSet, Split, default_preprocess, open_images
from secateur.compiler.data.preprocess import Preprocess
from secateur.compiler.errors import CompilerError, MissingExtraError, OptionError, SourceError

PLAIN = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def write(file: Path, value: int = 0, size: tuple[int, int] = (4, 6)) -> None:
    """Write an image of one grey value; size is height and width."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size[1], size[0]), (value,) * 3).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 6, 3 and 1 images, of grey value 10 * class + number of the image; and what is no image."""
    root = tmp_path / "pictures"
    for label, (name, count) in enumerate({"bird": 6, "cat": 3, "dog": 1}.items()):
        for index in range(count):
            write(root / name / f"{index}.{'PNG' if index else 'bmp'}", 10 * label + index)
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / "._0.png").write_bytes(b"left behind by a file manager")
    (root / ".cache").mkdir()
    write(root / ".cache" / "0.png")
    (root / "README.md").write_text("no image either")
    return root


def opened(
    data: Path | str,
    *,
    preprocess: Preprocess = PLAIN,
    labelled: bool = True,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 4,
) -> ImageSet:
    return open_images(
        str(data), preprocess=preprocess, labelled=labelled, limit=limit, seed=seed, batch_size=batch_size
    )


def digits(split: Split, *, labelled: bool = True, limit: int | None = None) -> ImageSet:
    preprocess = default_preprocess("digits", spec=None, input_shape=(1, 1, 8, 8))
    return open_images("digits", preprocess=preprocess, labelled=labelled, limit=limit, batch_size=100, split=split)


def values(images: ImageSet) -> list[int]:
    return [round(float(image.mean()) * 255) for batch, _ in images for image in batch]


def labels(images: ImageSet) -> list[int]:
    found: list[int] = []
    for _, batch in images:
        assert batch is not None
        found += batch.tolist()
    return found


def message(error: type[CompilerError], data: Path | str, *, labelled: bool = True) -> str:
    with pytest.raises(error) as caught:
        for _ in opened(data, labelled=labelled):
            pass
    return str(caught.value)


# What is read.


def test_class_folders(folder: Path) -> None:
    images = opened(folder)
    assert images.name == str(folder)
    assert images.classes == ("bird", "cat", "dog")
    assert len(images) == 10
    assert sorted(values(images)) == [0, 1, 2, 3, 4, 5, 10, 11, 12, 20]
    assert [value // 10 for value in values(images)] == labels(images)


def test_labels_are_those_of_torchvisions_image_folder(folder: Path) -> None:
    vision.import_torchvision()
    (folder / ".cache").rename(folder.parent / "cache")  # which would be a class there
    datasets: Any = importlib.import_module("torchvision.datasets")
    wanted = dict(datasets.ImageFolder(folder).samples)
    found = {item.name: item.label for item in opened(folder).items}
    assert {name: label for name, label in wanted.items() if "._" not in name} == found


def test_batches(folder: Path) -> None:
    batches = list(opened(folder, batch_size=4))
    assert [images.shape for images, _ in batches] == [(4, 3, 4, 6), (4, 3, 4, 6), (2, 3, 4, 6)]
    for images, targets in batches:
        assert images.dtype == torch.float32
        assert targets is not None
        assert targets.dtype == torch.int64
        assert len(targets) == len(images)


def test_images_go_through_the_preprocessing(folder: Path) -> None:
    (images, _), *_ = opened(folder, preprocess=Preprocess(resize=8, crop=(8, 7), mean=(1.0,) * 3, std=(0.5,) * 3))
    assert images.shape == (4, 3, 8, 7)
    plain, *_ = opened(folder)
    assert torch.allclose(images.mean((1, 2, 3)), (plain[0].mean((1, 2, 3)) - 1) / 0.5, atol=1e-6)


def test_links_and_deeper_folders_are_followed(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "deep" / "x.png", 33)
    os.symlink(tmp_path / "elsewhere", folder / "eagle", target_is_directory=True)
    images = opened(folder)
    assert images.classes == ("bird", "cat", "dog", "eagle")
    assert dict(zip(values(images), labels(images), strict=True))[33] == 3


def test_a_plain_folder_has_no_labels(tmp_path: Path) -> None:
    for index in range(5):
        write(tmp_path / f"{index}.jpeg", index)
    write(tmp_path / "more" / "5.jpeg", 5)
    images = opened(tmp_path, labelled=False)
    assert images.classes is None
    assert [targets for _, targets in images] == [None, None]
    assert sorted(values(images)) == [0, 1, 2, 3, 4, 5]


def test_class_folders_where_no_labels_are_needed(folder: Path) -> None:
    images = opened(folder, labelled=False, limit=3)
    assert images.classes is None
    assert [targets for _, targets in images] == [None]
    assert sorted(value // 10 for value in values(images)) == [0, 1, 2]  # balanced all the same


# Order.


def test_the_same_images_come_in_the_same_order_every_time(folder: Path) -> None:
    images = opened(folder)
    assert values(images) == values(images) == values(opened(folder))
    orders = {tuple(values(opened(folder, seed=seed))) for seed in range(5)}
    assert len(orders) == 5


def test_the_order_is_the_same_in_every_version() -> None:
    # Written down: results on a part of the images could otherwise not be reproduced.
    first = [item.name for item in digits("train").items[:4]]
    assert first == [f"image {index} of digits, training images" for index in (1001, 928, 1079, 561)]


def test_a_limit_is_balanced_over_the_classes(folder: Path) -> None:
    assert Counter(labels(opened(folder, limit=3))) == {0: 1, 1: 1, 2: 1}
    assert Counter(labels(opened(folder, limit=7))) == {0: 3, 1: 3, 2: 1}
    assert sorted(Counter(labels(digits("test", limit=105))).values()) == [10] * 5 + [11] * 5
    assert len(opened(folder, limit=99)) == 10


def test_smaller_limits_are_parts_of_larger_ones(folder: Path) -> None:
    whole = values(opened(folder))
    assert all(values(opened(folder, limit=limit)) == whole[:limit] for limit in range(1, 11))


def test_a_limit_below_the_number_of_classes_does_not_favour_the_first(folder: Path) -> None:
    chosen = {labels(opened(folder, limit=1, seed=seed))[0] for seed in range(20)}
    assert chosen == {0, 1, 2}


def test_the_global_generators_are_left_alone(folder: Path) -> None:
    before, torch_before = random.getstate(), torch.get_rng_state()
    list(opened(folder, limit=5))
    assert random.getstate() == before
    assert torch.equal(torch.get_rng_state(), torch_before)


# Embedded examples.


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_example(split: Split) -> None:
    example = examples.load("digits")
    images = digits(split)
    wanted = example.train_images if split == "train" else example.test_images
    targets = example.train_labels if split == "train" else example.test_labels
    assert images.classes == example.classes
    assert images.name == ("digits, training images" if split == "train" else "digits, test images")
    assert len(images) == len(wanted)
    assert Counter(labels(images)) == Counter(targets.tolist())
    where = {image.numpy().tobytes(): int(label) for image, label in zip(wanted, targets, strict=True)}
    found = torch.cat([batch for batch, _ in images])
    assert [where[image.numpy().tobytes()] for image in found] == labels(images)


def test_an_example_without_labels() -> None:
    images = digits("train", labelled=False, limit=20)
    assert images.classes is None
    assert [(batch.shape, targets) for batch, targets in images] == [((20, 1, 8, 8), None)]


def test_an_example_wins_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "digits" / "one" / "0.png")
    monkeypatch.chdir(tmp_path)
    assert len(digits("test")) == 450
    assert len(opened("./digits")) == 1


def test_an_example_comes_prepared_in_one_way_only() -> None:
    with pytest.raises(OptionError) as caught:
        opened("digits", preprocess=Preprocess(resize=32))
    text = str(caught.value)
    assert text.startswith("the images of 'digits' are 1x8x8 and come prepared with mean=0.3052,std=0.376\n")
    assert "at: --preprocess resize=32,mean=0.485" in text
    assert "leave --preprocess out" in text


# Defaults.


def test_the_default_looks_at_the_images(folder: Path) -> None:
    imagenet = str(Preprocess())
    assert str(default_preprocess(str(folder), spec=None, input_shape=(1, 3, 4, 6))) == imagenet
    resized = f"resize=9,crop=8,{imagenet}"
    assert str(default_preprocess(str(folder), spec=None, input_shape=(1, 3, 8, 8))) == resized
    write(folder / "dog" / "1.png", size=(6, 4))
    assert str(default_preprocess(str(folder), spec=None, input_shape=(1, 3, 4, 6))) == f"resize=7,crop=4x6,{imagenet}"


def test_the_default_for_an_example_is_its_own_whatever_the_model() -> None:
    found = default_preprocess("digits", spec={"kind": "callable"}, input_shape=(1, 3, 224, 224))
    assert str(found) == "mean=0.3052,std=0.376"


def test_the_default_names_a_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("not a png")
    with pytest.raises(SourceError, match=r"an image does not decode: cannot identify image file .*\n  at: .*x\.png"):
        default_preprocess(str(tmp_path), spec=None, input_shape=(1, 3, 8, 8))


# Mistakes.


def test_no_such_folder_says_what_is_there(folder: Path) -> None:
    text = message(SourceError, folder / "birds" / "small")
    assert f"there is no folder '{folder}/birds/small'" in text
    assert f"{folder} holds .cache/, README.md, bird/, cat/, dog/; embedded examples: digits" in text


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("", "there is no folder ''"),
        ("x" * 300, f"'{'x' * 80}' is no folder: "),
        ("~nobody-of-this-name/images", "'~nobody-of-this-name/images' is no folder: "),
    ],
)
def test_names_that_can_be_no_folder(data: str, expected: str) -> None:
    assert message(SourceError, data).startswith(expected)


def test_without_pillow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        MissingExtraError, match="Pillow, which decodes images, is not installed\n  try: pip install pillow"
    ):
        opened(folder)


def test_a_name_close_to_an_example() -> None:
    assert "try: did you mean the embedded example 'digits'?" in message(SourceError, "digit")


def test_a_long_list_of_what_is_there_is_cut(tmp_path: Path) -> None:
    for index in range(12):
        (tmp_path / f"{index:02d}").mkdir()
    assert "holds 00/, 01/, 02/, 03/, 04/, 05/, 06/, 07/ and 4 more" in message(SourceError, tmp_path / "x")


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data.tar.gz").write_bytes(b"")
    text = message(SourceError, tmp_path / "data.tar.gz")
    assert text.startswith(f"'{tmp_path}/data.tar.gz' is a file, and a folder of images is needed")
    assert "try: unpack it" in text


@pytest.mark.parametrize("labelled", [True, False])
def test_no_images(tmp_path: Path, labelled: bool) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.gif").write_bytes(b"")
    text = message(SourceError, tmp_path, labelled=labelled)
    assert text.startswith(f"there are no images in '{tmp_path}'")
    assert "holds cat/; files that end in .bmp .jpeg .jpg .pgm .png .ppm .tif .tiff .webp are images" in text


def test_an_empty_folder(tmp_path: Path) -> None:
    assert f"{tmp_path} is empty" in message(SourceError, tmp_path)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_parts_of_a_data_set_are_not_classes(folder: Path, labelled: bool) -> None:
    whole = folder.parent / "whole"
    whole.mkdir()
    for part in ("test", "Train"):
        os.symlink(folder, whole / part, target_is_directory=True)
    (whole / "meta").mkdir()
    text = message(SourceError, whole, labelled=labelled)
    assert text.startswith(f"'{whole}' holds the parts of a data set, not classes: Train, test")
    assert f"try: name one of them: {whole}/Train" in text


def test_labels_from_a_plain_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    text = message(SourceError, tmp_path)
    assert text.startswith(f"labels are needed, and 2 of 2 images in '{tmp_path}' are in no class folder\n")
    assert "put the images of each class into a folder of their own" in text


def test_labels_where_some_images_are_in_no_class(folder: Path) -> None:
    write(folder / "stray.png")
    text = message(SourceError, folder)
    assert text.startswith(
        f"labels are needed, and 1 of 11 images in '{folder}' are in no class folder\n  at: {folder}/stray"
    )


def test_a_class_without_images(folder: Path) -> None:
    (folder / "ant").mkdir()
    text = message(SourceError, folder)
    assert text.startswith(f"the class folder 'ant' of '{folder}' holds no images")
    assert len(opened(folder, labelled=False)) == 10


def test_an_image_that_does_not_decode_is_named(folder: Path) -> None:
    (folder / "dog" / "bad.png").write_text("not a png")
    text = message(SourceError, folder)
    assert text.startswith("an image does not decode: cannot identify image file")
    assert f"at: {folder}/dog/bad.png\n  try: repair or remove the file" in text


def test_a_truncated_image_is_named(folder: Path) -> None:
    generator = np.random.default_rng(0)
    file = folder / "dog" / "cut.jpg"
    Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:1000])
    text = message(SourceError, folder)
    assert text.startswith("an image does not decode: image file is truncated")
    assert "cut.jpg" in text


def test_images_of_different_sizes_need_a_size(folder: Path) -> None:
    write(folder / "dog" / "wide.png", size=(4, 9))
    text = message(SourceError, folder)
    assert text.startswith("images of different sizes do not make a batch: this one is 4x")
    assert "--preprocess resize=256,crop=224" in text
    assert len(list(opened(folder, preprocess=Preprocess(resize=8, crop=8)))) == 3


def test_an_image_smaller_than_the_crop_is_named(folder: Path) -> None:
    write(folder / "dog" / "tiny.png", size=(2, 2))
    with pytest.raises(SourceError, match=r"2x2 pixels is smaller than the crop of 4x4\n  at: .*tiny\.png"):
        list(opened(folder, preprocess=Preprocess(crop=4)))


@pytest.mark.parametrize("number", [0, -1])
def test_numbers_below_one(folder: Path, number: int) -> None:
    with pytest.raises(OptionError, match=f"the limit is {number}"):
        opened(folder, limit=number)
    with pytest.raises(OptionError, match=f"the batch size is {number}"):
        opened(folder, batch_size=number)
