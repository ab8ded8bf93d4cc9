"""Batches: the same for any number of processes, other ones in every epoch; images moved each for itself."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from secateur.backends.training.augment import resized_crop, shift_flip
from secateur.backends.training.splits import OnDisk, Share
from support.training import GREY, split


def test_processes_share_every_batch() -> None:
    images = split()
    alone = list(images.training(0, 8, Share(), seed=0, augment="shift-flip"))
    shares = [list(images.training(0, 8, Share(rank, 2), seed=0, augment="shift-flip")) for rank in range(2)]
    assert len(alone) == 6
    for (x, y), (x0, y0), (x1, y1) in zip(alone, *shares, strict=True):
        assert torch.equal(x[0::2], x0)
        assert torch.equal(x[1::2], x1)
        assert torch.equal(torch.stack([y0, y1], 1).flatten(), y)


def test_epochs_differ_and_repeat() -> None:
    images = split()

    def labels(epoch: int, seed: int = 0) -> list[int]:
        return [i for _, y in images.training(epoch, 8, Share(), seed=seed, augment="auto") for i in y.tolist()]

    assert labels(0) == labels(0)
    assert labels(0) != labels(1)
    assert labels(0) != labels(0, seed=1)


def test_an_incomplete_batch_is_left_out_unless_it_is_the_only_one() -> None:
    assert split(48).steps(40) == 1
    assert split(10).steps(40) == 1
    ((x, _),) = split(10).training(0, 40, Share(), seed=0, augment="none")
    assert len(x) == 10


def test_every_test_image_is_seen_once() -> None:
    images = split(23)
    for world in (1, 2, 3):
        seen = [y for rank in range(world) for _, y in images.testing(4, Share(rank, world))]
        assert sorted(torch.cat(seen).tolist()) == sorted(images.labels.tolist())


def test_images_are_normalised() -> None:
    images = split(4)
    ((x, _),) = images.testing(4, Share())
    assert torch.allclose(x, (images.images.float() / 255 - 0.5) / 0.25)


def test_shift_and_flip_move_each_image_for_itself() -> None:
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5)
    many = shift_flip(image.expand(200, 1, 5, 5), torch.Generator().manual_seed(0), shift=2)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))[0, 0]
    windows = [padded[r : r + 5, c : c + 5] for r in range(5) for c in range(5)]
    possible = {tuple(w.flatten().tolist()) for w in [*windows, *(w.flip(1) for w in windows)]}
    found = {tuple(one.flatten().tolist()) for one in many}
    assert found <= possible
    assert len(found) > 40


def test_resized_crops_keep_type_and_range() -> None:
    image = torch.randint(0, 256, (3, 3, 9, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    made = resized_crop(image, torch.Generator().manual_seed(0), size=(6, 6))
    assert made.shape == (3, 3, 6, 6)
    assert made.dtype == torch.uint8
    assert torch.equal(made, resized_crop(image, torch.Generator().manual_seed(0), size=(6, 6)))
    assert not torch.equal(made, resized_crop(image, torch.Generator().manual_seed(1), size=(6, 6)))


@pytest.fixture
def files(tmp_path: Path) -> OnDisk:
    generator = torch.Generator().manual_seed(0)
    found: list[tuple[int, Path]] = []
    for index in range(6):
        pixels = torch.randint(0, 256, (20 + index, 24, 3), generator=generator).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{index}.png")
        found.append((index % 2, tmp_path / f"{index}.png"))
    crop = type(GREY)(resize=12, crop=8, mean=GREY.mean, std=GREY.std)
    return OnDisk("files", ("a", "b"), crop, tuple(found), (8, 8), workers=0)


def test_files_are_read_when_they_are_needed(files: OnDisk) -> None:
    first, second = (list(files.training(0, 3, Share(), seed=0, augment="auto")) for _ in range(2))
    assert [x.shape for x, _ in first] == [(3, 3, 8, 8)] * 2
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))
    ((x, y),) = files.testing(6, Share())
    assert torch.equal(y, torch.tensor([0, 1] * 3))
    assert x.shape == (6, 3, 8, 8)


def test_parts_of_images_are_images(files: OnDisk) -> None:
    chosen = torch.tensor([4, 1])
    for images in (split(6), files):
        part = images.part(chosen)
        assert torch.equal(part.targets(), images.targets()[chosen])
        ((whole, _),), ((some, labels),) = images.testing(6, Share()), part.testing(6, Share())
        assert torch.equal(some, whole[chosen])
        assert torch.equal(labels, part.targets())
