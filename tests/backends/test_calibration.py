"""Images for a model, and the record by which they are found again."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from secateur.backends import calibration, inputs
from secateur.compiler.errors import SourceError
from secateur.passes.pipeline import PassPipeline


def folder(root: Path) -> Path:
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), 40 * i + number).save(root / name / f"{i}.png")
    return root


def labelled(found: calibration.Calibration) -> tuple[Tensor, Tensor]:
    batches = [batch for batch in found if isinstance(batch, tuple)]
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_an_example_by_name_and_again_from_its_record() -> None:
    model = inputs.load("digits")
    found = calibration.open_for(model, "digits", limit=40, seed=3)
    recorded = {"data": "digits", "preprocess": "mean=0.3052,std=0.376", "limit": 40, "seed": 3}
    assert found.spec == {**recorded, "images": 40, "labelled": True}
    first, again = (labelled(c) for c in (found, calibration.open_again(found.spec)))
    assert first[0].shape == (40, 1, 8, 8)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_the_labels_of_the_models_own_example() -> None:
    model = inputs.load("digits")
    images, labels = labelled(calibration.open_for(model, "digits", limit=100))
    assert labels.bincount().tolist() == [10] * 10
    assert (model.module.eval()(images).argmax(1) == labels).float().mean() > 0.9


def test_a_record_from_before_labels_opens_without() -> None:
    spec = dict(calibration.open_for(inputs.load("digits"), "digits", limit=40).spec)
    del spec["labelled"]
    assert all(isinstance(batch, Tensor) for batch in calibration.open_again(spec))


def test_a_folder_with_preprocessing(tmp_path: Path) -> None:
    model = inputs.load("digits")
    found = calibration.open_for(model, str(folder(tmp_path / "images")), preprocess="mean=0.5,std=0.5", limit=4)
    assert len(torch.cat([batch for batch in found if isinstance(batch, Tensor)])) == 4, "no labels: no tuples"
    images, how = calibration.open_labelled(model, str(tmp_path / "images"), preprocess="mean=0.5,std=0.5")
    assert (len(images), images.classes, how) == (6, ("cat", "dog"), "mean=0.5,std=0.5")


def test_data_that_are_gone(tmp_path: Path) -> None:
    model = inputs.load("digits")
    found = calibration.open_for(model, str(folder(tmp_path / "images")), preprocess="mean=0.5,std=0.5")
    with pytest.raises(SourceError, match="there is no folder"):
        calibration.open_again({**found.spec, "data": str(tmp_path / "gone")})


def test_only_quantize_makes_do_with_noise() -> None:
    assert calibration.makes_do_with_noise(PassPipeline.parse("prune{ratio=0.5},quantize")) == "quantize"
    assert calibration.makes_do_with_noise(PassPipeline.parse("fold-bn,prune{ratio=0.5 criterion=taylor}")) == ""
