"""How an image becomes an input: the text form, torchvision's own transforms as the reference, defaults per model."""

import importlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from secateur.compiler import sources, vision
from secateur.compiler.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, default_for
from secateur.compiler.errors import CompilerError, OptionError, SourceError

IMAGENET = "mean=0.485:0.456:0.406,std=0.229:0.224:0.225"


def random_image(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Smooth, so that the filters of resizing matter, and random, so that every crop is different."""
    generator = np.random.default_rng(height * 1000 + width)
    small = generator.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def torchvision_transforms(name: str, weights: str = "DEFAULT") -> Any:
    return vision.named_weights(name)[weights].transforms()


def message(error: type[CompilerError], text: str) -> str:
    with pytest.raises(error) as caught:
        Preprocess.parse(text)
    return str(caught.value)


def spec_of(name: str, member: str) -> dict[str, Any]:
    return {"kind": "torchvision", "model": name, "weights": member, "member": member, "seed": 0}


# Text.


@pytest.mark.parametrize(
    "text",
    [
        f"resize=256,crop=224,{IMAGENET}",
        f"resize=232,crop=224,interpolation=bicubic,{IMAGENET}",
        f"crop=224x192,{IMAGENET}",
        f"resize=40x32,interpolation=nearest,{IMAGENET}",
        "mean=0.3052,std=0.376",
        "resize=256,crop=224,mean=0.48235:0.45882:0.40784,std=0.00392156862745098:0.00392156862745098:0.00392156862745098",
    ],
)
def test_text_reads_and_prints_back(text: str) -> None:
    preprocess = Preprocess.parse(text)
    assert str(preprocess) == text
    assert Preprocess.parse(str(preprocess)) == preprocess


def test_what_text_leaves_out() -> None:
    assert Preprocess.parse("resize=40") == Preprocess(40, None, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    assert Preprocess.parse(" std = 1:1:1 , crop = 8 ,mean=0:0:0") == Preprocess(crop=8, mean=(0, 0, 0), std=(1, 1, 1))
    assert Preprocess.parse("mean=0,std=1").channels == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "an item is empty in ''"),
        ("resize=256,", "an item is empty in 'resize=256,'"),
        ("resise=256", "there is no item 'resise' in 'resise=256'\n  at: --preprocess\n  try: did you mean resize=?"),
        ("zoom=2", "known items: resize, crop, interpolation, mean, std"),
        ("resize", "'resize' has no value\n  at: --preprocess\n  try: resize=256"),
        ("crop=", "'crop' has no value"),
        ("crop=8,crop=9", "'crop' is given twice"),
        ("resize=0", "'resize=0' is not valid: expected sizes of 1 or more"),
        ("resize=-3", "'resize=-3' is not valid: expected a whole number, or HEIGHTxWIDTH"),
        ("crop=8x", "'crop=8x' is not valid"),
        ("crop=8x8x8", "'crop=8x8x8' is not valid"),
        ("resize=224,crop=256", "'crop=256' is not valid: expected no more than resize=224"),
        ("resize=40x20,crop=30x24", "'crop=30x24' is not valid: expected no more than resize=40x20"),
        ("interpolation=cubic", "'interpolation=cubic' is not valid: expected bilinear, bicubic, nearest"),
        ("mean=a:b:c", "'mean=a:b:c' is not valid: expected numbers with colons between them"),
        ("mean=0.5:0.5,std=1:1", "expected 3 numbers for colour or 1 for grey"),
        ("mean=0.5", "'std=0.229:0.224:0.225' is not valid: expected as many numbers as mean has: 1"),
        ("mean=nan:0:0", "'mean=nan:0.0:0.0' is not valid: expected finite numbers"),
        ("std=1:0:1", "'std=1.0:0.0:1.0' is not valid: expected finite numbers above 0"),
        ("std=1:-1:1", "expected finite numbers above 0"),
        ("std=1:inf:1", "expected finite numbers above 0"),
    ],
)
def test_malformed_text_is_told_what_is_expected(text: str, expected: str) -> None:
    assert expected in message(OptionError, text)


def test_a_crop_longer_than_the_shorter_side_may_fit_the_longer_one() -> None:
    preprocess = Preprocess.parse("resize=20,crop=20x30")
    assert preprocess.apply(random_image(40, 60)).shape == (3, 20, 30)
    with pytest.raises(SourceError, match="an image of 30x20 pixels is smaller than the crop of 20x30"):
        preprocess.apply(random_image(60, 40))


# Images.


@pytest.mark.parametrize("size", [(300, 401), (401, 300), (64, 64), (256, 256), (225, 231)])
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", "DEFAULT"),  # 256, 224, bilinear
        ("resnet50", "IMAGENET1K_V2"),  # 232: an odd rest to crop
        ("efficientnet_b1", "DEFAULT"),  # 255, 240
        ("efficientnet_b0", "DEFAULT"),  # bicubic
        ("vgg16", "IMAGENET1K_FEATURES"),  # a std of 1 / 255
    ],
)
def test_equals_the_transforms_of_published_weights(name: str, weights: str, size: tuple[int, int]) -> None:
    transforms, image = torchvision_transforms(name, weights), random_image(*size)
    crop = transforms.crop_size[0]
    preprocess = default_for(spec_of(name, weights), (1, 3, crop, crop))
    assert (preprocess.resize, preprocess.crop) == (transforms.resize_size[0], crop)
    assert preprocess.interpolation == transforms.interpolation.value
    found = preprocess.apply(image)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert torch.equal(found, transforms(image))


def test_nearest_and_exact_sizes_equal_torchvision() -> None:
    vision.import_torchvision()
    functional: Any = importlib.import_module("torchvision.transforms.functional")
    image = random_image(50, 70)
    resized = functional.resize(image, [24, 40], interpolation=functional.InterpolationMode.NEAREST)
    wanted = functional.to_tensor(functional.center_crop(resized, [21, 33]))
    found = Preprocess.parse("resize=24x40,crop=21x33,interpolation=nearest,mean=0:0:0,std=1:1:1").apply(image)
    assert torch.equal(found, wanted)
    bilinear = Preprocess.parse("resize=24x40,crop=21x33,mean=0:0:0,std=1:1:1").apply(image)
    assert not torch.equal(found, bilinear)


def test_values_are_normalised_per_channel() -> None:
    image = Image.new("RGB", (2, 3), (0, 51, 255))
    found = Preprocess(mean=(0.5, 0.1, 0.0), std=(0.5, 0.1, 2.0)).apply(image)
    assert torch.allclose(found, torch.tensor([-1.0, 1.0, 0.5]).view(3, 1, 1).expand(3, 3, 2))


def mean_of(image: Image.Image, channels: int) -> Tensor:
    plain = Preprocess(mean=(0.0,) * channels, std=(1.0,) * channels)
    return plain.apply(image).mean((1, 2)) * 255


def test_other_modes_are_converted() -> None:
    red = (200, 100, 50)
    assert torch.allclose(mean_of(Image.new("RGBA", (4, 4), (*red, 10)), 3), torch.tensor([200.0, 100.0, 50.0]))
    assert torch.allclose(mean_of(Image.new("L", (4, 4), 77), 3), torch.tensor([77.0, 77.0, 77.0]))
    assert torch.allclose(mean_of(Image.new("1", (4, 4), 1), 1), torch.tensor([255.0]))
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
    assert torch.allclose(mean_of(Image.new("RGB", (4, 4), red), 1), torch.tensor([124.2]), atol=1)


def test_a_transparent_palette_is_converted_without_a_warning() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.info["transparency"] = bytes([255, 128])
    assert torch.allclose(mean_of(image, 3), torch.tensor([200.0, 100.0, 50.0]))


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_more_than_eight_bits_are_refused(mode: str) -> None:
    with pytest.raises(SourceError, match=f"mode {mode}.*\n  at: deep.png"):
        Preprocess().apply(Image.new(mode, (4, 4)), where="deep.png")


def test_an_image_smaller_than_the_crop_is_refused_and_not_padded() -> None:
    with pytest.raises(SourceError) as caught:
        Preprocess(crop=32).apply(random_image(40, 30), where="a/b.png")
    assert str(caught.value).startswith("an image of 40x30 pixels is smaller than the crop of 32x32\n  at: a/b.png")


# Defaults.


def test_the_default_of_weights_follows_artefacts_and_scales_to_another_input() -> None:
    spec = spec_of("resnet50", "IMAGENET1K_V2")
    nested = {"kind": "artefact", "source": {"kind": "artefact", "source": spec}}
    assert str(default_for(nested, (1, 3, 224, 224))) == f"resize=232,crop=224,{IMAGENET}"
    assert str(default_for(spec, (1, 3, 112, 112))) == f"resize=116,crop=112,{IMAGENET}"
    assert str(default_for(spec, (8, 3, 64, 128))) == f"resize=133,crop=64x128,{IMAGENET}"
    assert str(default_for(spec, (1, 3, 224, 224), image_size=(224, 224))) == f"resize=232,crop=224,{IMAGENET}"


@pytest.mark.parametrize(
    "spec",
    [
        None,
        {"kind": "torchvision", "model": "resnet18", "weights": "none", "seed": 0},
        {"kind": "callable", "model": "mine:net", "weights": "none", "seed": 0},
        {"kind": "artefact", "source": None},
        spec_of("fcn_resnet50", "DEFAULT"),  # not a classifier's transforms
    ],
)
def test_the_default_without_published_transforms(spec: dict[str, Any] | None) -> None:
    assert str(default_for(spec, (1, 3, 224, 224))) == f"resize=256,crop=224,{IMAGENET}"
    assert str(default_for(spec, (1, 3, 32, 32), image_size=(40, 40))) == f"resize=37,crop=32,{IMAGENET}"
    assert str(default_for(spec, (1, 3, 32, 32), image_size=(32, 32))) == IMAGENET
    assert str(default_for(spec, (1, 3, 48, 32), image_size=(32, 48))) == f"resize=55,crop=48x32,{IMAGENET}"


def test_the_default_of_an_example() -> None:
    spec = sources.resolve("digits").spec
    assert str(default_for(spec, (1, 1, 8, 8), image_size=(8, 8))) == "mean=0.3052,std=0.376"
    assert str(default_for(spec, (1, 1, 8, 8))) == "resize=9,crop=8,mean=0.3052,std=0.376"


def test_the_default_of_a_source_equals_what_the_source_records() -> None:
    member = vision.named_weights("mobilenet_v3_small")["DEFAULT"]
    record = vision.preprocessing(member)
    assert record is not None
    found = default_for(spec_of("mobilenet_v3_small", member.name), (1, 3, 224, 224))
    assert {**record, "mean": tuple(record["mean"]), "std": tuple(record["std"])} == vars(found)


@pytest.mark.parametrize("shape", [(1, 3, 16, 112, 112), (1, 64), (1, 2, 8, 8)])
def test_no_default_for_what_is_no_batch_of_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=f"an input of shape {'x'.join(map(str, shape))} is no batch of images"):
        default_for(None, shape)


def test_no_default_for_grey_images_of_a_model_that_says_nothing() -> None:
    with pytest.raises(OptionError, match="no mean and std are known for grey images"):
        default_for(None, (1, 1, 28, 28))


def test_weights_that_the_installed_torchvision_does_not_know() -> None:
    with pytest.raises(OptionError, match="does not know the weights V9 of resnet18, nor their transforms"):
        default_for(spec_of("resnet18", "V9"), (1, 3, 224, 224))


def test_text_needs_no_torch() -> None:
    code = (
        "import sys\nfrom secateur.compiler.data.preprocess import Preprocess\nimport secateur.compiler.data.images\n"
        "Preprocess.parse('resize=8')\nprint({'torch', 'PIL', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
