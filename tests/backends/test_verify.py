"""secateur verify: what passes, and everything that must not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import secateur
from secateur.backends import inputs, tables, weights_file
from secateur.backends.calibration import open_for
from secateur.backends.verify import verify
from secateur.compiler.errors import ArtefactError, CompilerError, ProofError, SourceError
from support.small import Residual


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    return made(tmp_path / "digits", "digits")


def made(directory: Path, model: str, pipeline: str = "prune{ratio=0.3}") -> Path:
    found = inputs.load(model)
    compiled = secateur.compile(
        found.module, found.example_inputs(), pipeline=pipeline, source=found.spec, verify=False
    )
    return compiled.save(directory)


def changed(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_an_artefact_is_proven_again(digits: Path) -> None:
    said: list[str] = []
    found = verify(digits, progress=said.append)
    assert found.to_json()["holds"]
    assert found.tensors == 92
    assert said[:2] == ["building the original again", "comparing the weights"]


def test_an_artefact_of_an_artefact(digits: Path, tmp_path: Path) -> None:
    second = made(tmp_path / "second", str(digits))
    assert verify(second).to_json()["holds"]
    report = json.loads((second / "report.json").read_text())
    assert report["source"]["source"]["model"] == "digits"
    assert report["accuracy"]["images"] == 450
    weights = weights_file.read(digits / "model.safetensors")
    weights["fc.bias"][0] += 1
    weights_file.save(weights, digits / "model.safetensors")
    with pytest.raises(ArtefactError, match="the artefact that was compiled from is not what it was then"):
        verify(second)


def test_a_changed_weight(digits: Path) -> None:
    weights = weights_file.read(digits / "model.safetensors")
    weights["fc.bias"][0] += 1e-6
    weights_file.save(weights, digits / "model.safetensors")
    with pytest.raises(ProofError, match=r"'fc.bias' is not the original's, indexed by plan.json"):
        verify(digits)


def test_a_changed_plan(digits: Path) -> None:
    def swap(plan: Any) -> None:
        kept = plan["kept"]["layer1.0.conv1.weight"]["0"]
        kept[0], kept[1] = kept[1], kept[0]

    changed(digits / "plan.json", swap)
    with pytest.raises(ProofError, match=r"'layer1.0.conv1.weight' is not the original's"):
        verify(digits)


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent.weight", "the original has no tensor"), ("conv1.weight", "does not fit the original")],
)
def test_a_plan_that_does_not_fit(digits: Path, name: str, message: str) -> None:
    changed(digits / "plan.json", lambda plan: plan["kept"].update({name: {"0": [999]}}))
    with pytest.raises(ProofError, match=message):
        verify(digits)


def test_a_model_that_computes_something_else(digits: Path) -> None:
    source = digits / "model.py"
    text = source.read_text()
    assert "self.relu(self.bn1(" in text
    source.write_text(text.replace("self.relu(self.bn1(", "torch.tanh(self.bn1(", 1))
    with pytest.raises(ProofError, match="differs from the masked original"):
        verify(digits)


def test_models_that_were_in_memory_only(tmp_path: Path) -> None:
    compiled = secateur.compile(Residual(), torch.zeros(1, 3, 8, 8), verify=False)
    with pytest.raises(ArtefactError, match="compiled from a model in memory"):
        verify(compiled.save(tmp_path / "mine"))


def test_damaged_records(digits: Path) -> None:
    with pytest.raises(ArtefactError, match="there is no such artefact directory"):
        verify(digits / "absent")
    changed(digits / "report.json", lambda report: report.update(inputs=[{"shape": "?"}]))
    with pytest.raises(ArtefactError, match=r"report.json is damaged"):
        verify(digits)
    changed(digits / "report.json", lambda report: report["source"].update(weights_sha256="0"))
    with pytest.raises(SourceError, match="are not those that were recorded"):
        verify(digits)


def perturbed(directory: Path, by: float) -> None:
    """Change all convolutions' weights by noise, relative to their size."""
    file, generator = directory / "model.safetensors", torch.Generator().manual_seed(0)
    weights = weights_file.read(file)
    for name, tensor in weights.items():
        if tensor.ndim == 4:
            noise = torch.randn(tensor.shape, generator=generator)
            weights[name] = tensor + by * noise * tensor.square().mean().sqrt()
    weights_file.save(weights, file)


def fitted(directory: Path, pipeline: str) -> Path:
    digits = inputs.load("digits")
    data = open_for(digits, "digits", limit=64)
    compiled = secateur.compile(
        digits.module, digits.example_inputs(), pipeline=pipeline, source=digits.spec, verify=False, data=data
    )
    return compiled.save(directory)


def test_what_was_fitted_may_come_out_a_little_different(tmp_path: Path) -> None:
    made = fitted(tmp_path / "made", "prune{ratio=0.3},reconstruct,fold-bn")
    exact = verify(made)
    assert exact.drift is None
    assert exact.tensors == 32
    perturbed(made, 1e-5)
    found = verify(made)
    assert found.drift is not None
    assert found.drift.tensors == 15
    assert 0 < found.drift.distance < 1e-3 < found.drift.error
    assert found.to_json()["drift"]["distance"] == found.drift.distance
    console = Console(width=120, no_color=True)
    with console.capture() as shown:
        console.print(tables.verification("made", found.tensors, found.to_json()))
    assert "made holds: 17 of 32 tensors are what they should be, the others as nearly as" in shown.get()
    assert "with other threads or on another machine" in shown.get()
    perturbed(made, 0.5)
    with pytest.raises(ProofError, match="is not what the pipeline makes of the original: outputs differ by"):
        verify(made)


def test_another_type_is_no_drift(tmp_path: Path) -> None:
    made = fitted(tmp_path / "made", "prune{ratio=0.3},reconstruct,fold-bn")
    perturbed(made, 1e-5)
    file = made / "model.safetensors"
    weights = weights_file.read(file)
    weights_file.save({**weights, "fc.bias": weights["fc.bias"].double()}, file)
    with pytest.raises(CompilerError):
        verify(made)


def test_what_was_not_fitted_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    made = fitted(tmp_path / "made", "prune{ratio=0.3 criterion=taylor},fold-bn")
    assert verify(made).drift is None
    perturbed(made, 1e-6)
    with pytest.raises(ProofError, match="is not what the pipeline makes of the original\n"):
        verify(made)


def test_what_data_chose_is_verified_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fitted(tmp_path / "made", "prune{ratio=0.3 criterion=taylor},fold-bn")
    monkeypatch.setattr("secateur.backends.verify.open_again", None)
    assert verify(made).tensors == 32
