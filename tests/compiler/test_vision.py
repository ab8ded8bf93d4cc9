"""Importing torchvision with and without its operators, its models' inputs and published weights."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.compiler import vision
from secateur.compiler.errors import MissingExtraError, SourceError
from secateur.compiler.sources import ModelSource, list_models, rebuild, resolve


def run_python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def error_of(model: str, **options: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        resolve(model, **options)
    return caught.value


def same(first: ModelSource, second: ModelSource) -> bool:
    a, b = first.module.state_dict(), second.module.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_import_works_and_is_the_same_module_every_time() -> None:
    module = vision.import_torchvision()
    assert module is vision.import_torchvision() is sys.modules["torchvision"]
    assert "resnet18" in module.models.list_models()


@pytest.mark.parametrize("before", ["", "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"])
def test_import_in_a_fresh_process_whether_or_not_the_user_imported_it_before(before: str) -> None:
    code = before + (
        "from secateur.compiler.vision import import_torchvision\n"
        "from secateur.compiler.torchvision_ops import _LIBRARIES\n"
        "first = import_torchvision()\n"
        "import torchvision, torchvision.extension\n"
        "print(first is torchvision is import_torchvision(), bool(_LIBRARIES) != torchvision.extension._has_ops())"
    )
    assert run_python(code) == "True True"


def test_code_of_a_user_that_imports_torchvision_can_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torchvision\n"
        "def net():\n"
        "    from torchvision.models import squeezenet1_1\n"
        "    return squeezenet1_1(num_classes=7)\n"
    )
    code = (
        "import os\n"
        "from secateur.compiler.sources import resolve\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "source = resolve('mine:net')\n"
        "import torchvision, torch\n"
        "boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])\n"
        "print(source.name, torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist())"
    )
    assert run_python(code) == "net [1]"


def test_nms_of_torchvision_works_with_or_without_its_operators() -> None:
    dets = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9], [2.0, 2.0, 3.0, 3.0]])
    nms = vision.import_torchvision().ops.nms
    assert nms(dets, torch.tensor([0.5, 0.9, 0.7]), 0.5).tolist() == [1, 2]


def test_missing_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="torchvision is not installed\n  try: pip install torchvision"):
        vision.import_torchvision()


def test_a_torchvision_that_does_not_import(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("")
    (tmp_path / "torchvision" / "extension.py").write_text("raise RuntimeError('another CUDA')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from secateur.compiler.vision import import_torchvision\n"
        "try:\n    import_torchvision()\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
        "print('torchvision' in sys.modules)"
    )
    lines = run_python(code).splitlines()
    assert lines[0].startswith("SourceError torchvision does not import beside torch")
    assert lines[0].endswith("another CUDA")
    assert lines[1:] == ["  try: install the torchvision that was released with this torch", "False"]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet18", ((1, 3, 224, 224),)),
        ("inception_v3", ((1, 3, 299, 299),)),
        ("quantized_inception_v3", ((1, 3, 299, 299),)),
        ("efficientnet_b1", ((1, 3, 240, 240),)),
        ("vit_h_14", ((1, 3, 224, 224),)),  # its default weights are for 518, but random ones are not
        ("swin_v2_t", ((1, 3, 256, 256),)),
        ("r3d_18", ((1, 3, 16, 112, 112),)),
        ("s3d", ((1, 3, 16, 224, 224),)),
        ("lraspp_mobilenet_v3_large", ((1, 3, 224, 224),)),
        ("ssdlite320_mobilenet_v3_large", ((1, 3, 224, 224),)),
        ("raft_small", ((1, 3, 128, 128),) * 2),
    ],
)
def test_input_shapes(name: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    with torch.device("meta"):
        module = vision.build_model(name)
    assert vision.input_shapes(name, module) == shapes


@pytest.mark.parametrize("name", ["raft_small", "lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large"])
def test_unusual_models_run_at_their_default_shapes(name: str) -> None:
    module = vision.build_model(name).eval()
    with torch.inference_mode():
        module(*(torch.rand(shape) for shape in vision.input_shapes(name, module)))


def test_every_listed_model_has_published_weights_with_a_file_name() -> None:
    for name in list_models()["torchvision"]:
        if vision.has_model(name):
            published = vision.named_weights(name)
            assert vision.file_name(published["DEFAULT"]).endswith(".pth")
            assert vision.class_name(name).isidentifier()


def test_preprocessing() -> None:
    assert vision.preprocessing(vision.named_weights("efficientnet_v2_l")["DEFAULT"]) == {
        "resize": 480,
        "crop": 480,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    assert vision.preprocessing(vision.named_weights("raft_small")["DEFAULT"]) is None


def test_build_model_never_downloads() -> None:
    member = vision.named_weights("squeezenet1_1")["DEFAULT"]
    with pytest.raises(SourceError, match=r"would download squeezenet1_1-b8a52dc0\.pth"):
        vision.build_model("squeezenet1_1", member=member)


# Published weights.


def test_published_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    error = error_of("resnet50", weights="default")
    path = tmp_path / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    assert error.what == "the weights IMAGENET1K_V2 of resnet50 are not on this machine, and secateur downloads nothing"
    assert error.where == str(path)
    assert "put resnet50-11ad3fa6.pth there, or use `--weights FILE`" in str(error)
    assert "resnet50-0676ba61.pth" in str(error_of("resnet50", weights="ResNet50_Weights.imagenet1k_v1"))
    assert not list(tmp_path.iterdir())


def test_published_weights_that_do_not_exist() -> None:
    error = error_of("resnet50", weights="V7")
    assert error.what == "resnet50 has no published weights 'V7'"
    assert error.hint == "none, default, IMAGENET1K_V1, IMAGENET1K_V2, or a file"


def googlenet_as_published(path: Path) -> Path:
    """As torchvision publishes it: with the auxiliary heads that it then drops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(resolve("googlenet", seed=5).module.state_dict(), path)
    return path


def test_published_weights_from_the_cache_of_torch_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = googlenet_as_published(tmp_path / "hub" / "checkpoints" / "googlenet-1378be20.pth")
    source = resolve("googlenet", weights="default")
    assert getattr(source.module, "transform_input", None) is True
    assert getattr(source.module, "aux1", 0) is None
    assert source.preprocess is not None
    assert (source.preprocess["resize"], source.preprocess["crop"]) == (256, 224)
    assert source.spec["weights"] == "default"
    assert source.spec["member"] == "IMAGENET1K_V1"
    assert source.spec["weights_file"] == str(path)
    assert source.spec["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert same(source, rebuild(json.loads(json.dumps(source.spec))))
    # The float weights of a quantized model are those of its plain sibling; and a file is known by its name.
    assert same(source, resolve("quantized_googlenet", weights="IMAGENET1K_V1"))
    assert same(source, resolve("googlenet", weights=str(path)))


def test_a_renamed_file_is_known_by_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = googlenet_as_published(tmp_path / "mine.pth")
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(vision, "file_name", lambda _: f"googlenet-{checksum[:8]}.pth")
    assert getattr(resolve("googlenet", weights=str(path)).module, "aux1", 0) is None


def test_published_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "squeezenet1_1-b8a52dc0.pth"
    torch.save({"w": torch.ones(1)}, path)
    error = error_of("squeezenet1_1", weights=str(path))
    assert error.what.startswith("these weights do not fit squeezenet1_1: ")
    assert (error.where, error.hint) == (str(path), "use squeezenet1_1-b8a52dc0.pth")
