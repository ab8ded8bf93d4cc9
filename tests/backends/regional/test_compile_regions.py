"""Detectors from the command line: compiled, proven again, loaded, trained, compiled once more, refused."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from support.detection import DETECTORS, detector, images, targets

Invoke = Callable[..., tuple[int, str, str]]
SIZE = ("--input", "1x3x64x64")


@pytest.fixture
def invoke(invoke: Invoke) -> Invoke:
    lines = ["from support.detection import detector", "from support.stubborn import Counting, Heads"]
    lines += [f"def {name}(): return detector({name!r})" for name in DETECTORS]
    lines += ["def counting(): return Heads(Counting())", "class Never:", "    pass"]
    Path("mine.py").write_text("\n".join(lines))
    return invoke


@pytest.mark.parametrize("name", DETECTORS)
def test_an_artefact_of_a_detector(invoke: Invoke, name: str) -> None:
    code, out, err = invoke("compile", f"mine:{name}", *SIZE, "-o", "small", "--json")
    assert code == 0, err
    assert "cannot be traced as a whole: its networks are, one by one" in err
    report = json.loads(out)
    assert report["kind"] == "regions"
    assert report["kept"]["macs"] == pytest.approx(0.5, abs=0.06)
    assert report["verification"]["holds"]
    assert report["regions"]["borders"]
    assert sorted(p.name for p in Path("small").iterdir()) == [
        "model.py",
        "model.safetensors",
        "plan.json",
        "report.json",
    ]
    assert "secateur" not in "\n".join(
        line for line in Path("small/model.py").read_text().splitlines() if "import" in line
    )
    code, out, err = invoke("verify", "small")
    assert code == 0, err
    assert "is proven" in out
    model = secateur.load(Path("small"))
    assert type(model).__qualname__ == type(detector(name)).__qualname__
    with torch.no_grad():
        assert len(model(images(2))) == 2
    model.train()
    torch.stack(list(trained(model)(images(2), targets()).values())).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def trained(model: nn.Module) -> Any:
    return model


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet", "ssdlite"])
@pytest.mark.parametrize(
    "pipeline",
    ["@data-free{macs=0.5}", "prune{macs=0.5 scope=global criterion=random select=all},fold-bn,eliminate-dead-code"],
)
def test_regions_whose_code_does_not_go_along_are_written_down(invoke: Invoke, name: str, pipeline: str) -> None:
    code, out, err = invoke("compile", f"mine:{name}", *SIZE, "--pipeline", pipeline, "-o", "small", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["regions"]["rewritten"]
    assert report["verification"]["holds"]
    text = Path("small/model.py").read_text()
    assert "def forward_0(self: nn.Module" in text
    assert "secateur." not in text.partition('"""')[2].partition('"""')[2]
    code, out, err = invoke("verify", "small")
    assert code == 0, err
    model = secateur.load(Path("small"))
    assert type(model).__qualname__ == type(detector(name)).__qualname__
    assert not [key for key in model.state_dict() if key.startswith("backbone.body") and "running_mean" in key]
    model.train()
    torch.stack(list(trained(model)(images(2), targets()).values())).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_it_is_compiled_once_more(invoke: Invoke) -> None:
    assert invoke("compile", "mine:retinanet", *SIZE, "-o", "once")[0] == 0
    code, out, err = invoke("compile", "once", "--pipeline", "prune{macs=0.5}", "-o", "twice", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["before"] == json.loads(Path("once/report.json").read_text())["after"]
    assert "mine" in Path("twice/model.py").read_text()
    code, _, err = invoke("verify", "twice")
    assert code == 0, err


def test_other_weights_are_found(invoke: Invoke) -> None:
    assert invoke("compile", "mine:fcos", *SIZE, "-o", "small")[0] == 0
    file = Path("small/model.safetensors")
    file.write_bytes(file.read_bytes()[:-4] + b"\1\0\0\0")
    code, _, err = invoke("verify", "small")
    assert code == 1
    assert "is not what the pipeline makes of the original" in err


def test_other_code_is_found(invoke: Invoke) -> None:
    assert invoke("compile", "mine:fcos", *SIZE, "-o", "small")[0] == 0
    file = Path("small/model.py")
    text = file.read_text()
    before = "    return model\n\n\n_DTYPES"
    assert before in text
    file.write_text(text.replace(before, "    model.backbone.body.layer1[1].eps = 0.5\n" + before))
    code, _, err = invoke("verify", "small")
    assert code == 1
    assert "the code of backbone does not go along with the pruned layers" in err


def test_inspect_and_explain_know_the_regions(invoke: Invoke) -> None:
    code, out, err = invoke("inspect", "mine:faster_rcnn", *SIZE)
    assert code == 0, err
    assert "backbone.body.stem.0: 8 channels" in out
    assert "Python code reads it" in out
    code, out, err = invoke("explain", "mine:faster_rcnn", "backbone.body.stem.0", *SIZE)
    assert code == 0, err
    assert out.startswith("backbone.body.stem.0: 8 channels, all may be removed but one")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mine:fcos", "--emit", "onnx"), "onnx cannot express the Python code between this model's networks"),
        (("mine:fcos", "--pipeline", "prune{latency=0.5}"), "no time per call that an engine could measure"),
        (("mine:fcos", "--pipeline", "quantize"), "the file that puts the model together has no words for that"),
        (("mine:fcos", "--data", "images"), "is pruned without data"),
        (("mine:counting", "--pipeline", "prune{ratio=0.5}"), "runs neither on a batch of images nor on a list"),
    ],
)
def test_what_cannot_be_is_one_message(invoke: Invoke, words: tuple[str, ...], said: str) -> None:
    from PIL import Image

    Path("images/a").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save("images/a/0.png")
    size = ("--input", "1x3x9x9") if "counting" in words[0] else SIZE
    code, out, err = invoke("compile", *words, *size, "-o", "small")
    assert code == 2
    assert not out
    assert said in err.splitlines()[-3] + err.splitlines()[-2] + err.splitlines()[-1]
    assert not Path("small").exists()


def test_the_model_that_was_given_stays(invoke: Invoke) -> None:
    from secateur.backends import inputs
    from secateur.backends.regional.compile import compile_regions
    from secateur.passes.pipeline import PassPipeline

    model = inputs.load("mine:ssd", shapes=("1x3x64x64",))
    before = copy.deepcopy(model.module.state_dict())
    made = compile_regions(model, PassPipeline.parse("prune{macs=0.5}"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert type(made.module) is type(model.module)
