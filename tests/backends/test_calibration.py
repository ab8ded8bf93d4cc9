"""Images for a model, and the record by which they are found again."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from secateur.backends import calibration, inputs
from secateur.compiler.errors import SourceError
from secateur.passes.pipeline import PassPipeline


def folder(root: Path) -> Path:
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), 40 * i + number).save(root / name / f"{i}.png")
    return root


def test_an_example_by_name_and_again_from_its_record() -> None:
    model = inputs.load("digits")
    found = calibration.open_for(model, "digits", limit=40, seed=3)
    assert found.spec == {"data": "digits", "preprocess": "mean=0.3052,std=0.376", "limit": 40, "seed": 3, "images": 40}
    first, again = (torch.cat(list(c)) for c in (found, calibration.open_again(found.spec)))
    assert first.shape == (40, 1, 8, 8)
    assert torch.equal(first, again)


def test_a_folder_with_preprocessing(tmp_path: Path) -> None:
    model = inputs.load("digits")
    found = calibration.open_for(model, str(folder(tmp_path / "images")), preprocess="mean=0.5,std=0.5", limit=4)
    assert len(torch.cat(list(found))) == 4
    images, how = calibration.open_labelled(model, str(tmp_path / "images"), preprocess="mean=0.5,std=0.5")
    assert (len(images), images.classes, how) == (6, ("cat", "dog"), "mean=0.5,std=0.5")


def test_data_that_are_gone(tmp_path: Path) -> None:
    model = inputs.load("digits")
    found = calibration.open_for(model, str(folder(tmp_path / "images")), preprocess="mean=0.5,std=0.5")
    with pytest.raises(SourceError, match="there is no folder"):
        calibration.open_again({**found.spec, "data": str(tmp_path / "gone")})


def test_which_passes_calibrate() -> None:
    assert calibration.needed_by(PassPipeline.parse("prune{ratio=0.5},quantize")) == "quantize"
    assert calibration.needed_by(PassPipeline.parse("prune{ratio=0.5}")) == ""
