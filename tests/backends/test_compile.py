"""secateur.compile: the module, the plan, the report, and what is left untouched."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur
from secateur.backends import artefact, checks, weights_file
from secateur.backends.report import weights_file_size
from secateur.compiler import examples, sources
from secateur.compiler.errors import ArtefactError, OptionError, PipelineSyntaxError, ProofError
from secateur.compiler.plan import Kept
from secateur.compiler.proof import Proof, Trial
from support.small import Grouped, Residual, captured

IMAGE = torch.zeros(1, 3, 8, 8)


def test_the_module_is_pruned_proven_and_reported() -> None:
    model = Residual().eval()
    compiled = secateur.compile(model, IMAGE, pipeline="prune{ratio=0.5}")
    assert compiled.module(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    assert compiled.plan.kept["inner.weight"][0]
    report = compiled.report
    assert report["verification"]["holds"]
    assert report["pipeline"] == "prune{ratio=0.5}"
    assert report["before"]["params"] == sum(p.numel() for p in model.parameters())
    assert report["after"]["params"] == sum(p.numel() for p in compiled.module.parameters())
    assert report["after"]["two_macs"] == 2 * report["after"]["macs"]
    assert report["inputs"] == [{"name": "x", "shape": [1, 3, 8, 8], "dtype": "float32"}]
    stem = next(layer for layer in report["layers"] if layer["layer"] == "stem")
    assert (stem["before"]["outputs"], stem["after"]["outputs"]) == (8, 4)
    assert {"secateur", "torch", "numpy", "python"} <= set(report["versions"])
    assert report["source"] is None
    assert report["accuracy"] is None
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("pipeline", ["prune{ratio=0.5}", "prune{ratio=0.0}"])
def test_nothing_is_shared_with_the_users_model_which_stays_as_it_was(pipeline: str) -> None:
    model = Residual().train()
    model.bn.eval()  # frozen
    before = copy.deepcopy(model.state_dict())
    compiled = secateur.compile(model, IMAGE, pipeline=pipeline)
    assert [m.training for m in (model, model.stem, model.bn)] == [True, True, False]
    assert compiled.module.training
    assert not compiled.module.get_submodule("bn").training
    theirs = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert not set(compiled.module.modules()) & set(model.modules())
    for tensor in (*compiled.module.parameters(), *compiled.module.buffers()):
        assert tensor.untyped_storage().data_ptr() not in theirs
        tensor.data.zero_()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


def test_shared_weights_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)))

    module = secateur.compile(Tied(), torch.zeros(1, 4), pipeline="prune{ratio=0.0}").module
    assert module.get_submodule("a").weight is module.get_submodule("b").weight


def test_a_program_needs_no_inputs_and_a_module_does() -> None:
    program = captured(Residual())
    compiled = secateur.compile(program, pipeline="prune{ratio=0.5}")
    assert compiled.original is program
    with pytest.raises(OptionError, match="needs example inputs"):
        secateur.compile(Residual())
    with pytest.raises(PipelineSyntaxError):
        secateur.compile(Residual(), IMAGE, pipeline="prune{")


@pytest.mark.parametrize("model", [Residual(), Grouped()])
def test_several_passes_have_one_plan_of_the_original(model: nn.Module) -> None:
    once = secateur.compile(model.eval(), IMAGE, pipeline="prune{ratio=0.2}")
    twice = secateur.compile(model, IMAGE, pipeline="prune{ratio=0.2},prune{ratio=0.4}")
    assert twice.report["verification"]["holds"]
    assert len(twice.report["passes"]) == 2
    for name, axes in once.plan.kept.items():
        for axis, kept in axes.items():
            assert flat(twice.plan.kept[name][axis]) < flat(kept)


def flat(kept: Kept) -> set[tuple[int, int]]:
    rows = [part if isinstance(part, list) else [part] for part in kept]
    grouped = isinstance(kept[0], list)
    return {(number if grouped else 0, index) for number, row in enumerate(rows) for index in row}


def test_no_proof_on_demand_and_a_failed_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert secateur.compile(Residual(), IMAGE, verify=False).report["verification"] is None
    wrong = Proof((Trial(((2, 3, 8, 8),), 1.0, 1.0),), vacuous=False)
    monkeypatch.setattr(checks, "prove", lambda *a, **k: wrong)
    with pytest.raises(ProofError, match="differs from the masked original by 1"):
        secateur.compile(Residual(), IMAGE)


def test_progress_names_the_stages() -> None:
    said: list[str] = []
    secateur.compile(Residual(), IMAGE, pipeline="prune{ratio=0.5}", progress=said.append)
    assert said[:2] == ["tracing Residual", "running prune{ratio=0.5}"]
    assert said[2].startswith("proving on 2x3x8x8")


def test_saving_writes_the_files_and_their_true_sizes(tmp_path: Path) -> None:
    compiled = secateur.compile(Residual(), IMAGE, pipeline="prune{ratio=0.5}")
    directory = compiled.save(tmp_path / "out", emit=["pt2", "python"])
    files = {path.name: path.stat().st_size for path in directory.iterdir()}
    report = artefact.read_report(directory)
    assert sorted(files) == ["model.pt2", "model.py", "model.safetensors", "plan.json", "report.json"]
    assert report["files"] == {name: size for name, size in files.items() if name != "report.json"}
    assert report["after"]["bytes"] == files["model.safetensors"]
    assert {"trace", "passes", "prove", "emit", "export"} <= set(report["timings"])
    assert artefact.read_plan(directory) == compiled.plan
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(secateur.load(directory)(x), compiled.module.eval()(x))
    with pytest.raises(ArtefactError, match="exists already"):
        compiled.save(directory)
    compiled.save(directory, force=True)
    assert not (directory / "model.pt2").exists()


def test_a_plan_is_a_line_per_tensor(tmp_path: Path) -> None:
    compiled = secateur.compile(Residual(), IMAGE, pipeline="prune{ratio=0.5}")
    text = (compiled.save(tmp_path / "out") / "plan.json").read_text()
    assert '\n  "stem.weight": {"0": [' in text


def test_unknown_backends(tmp_path: Path) -> None:
    compiled = secateur.compile(Residual(), IMAGE, verify=False)
    with pytest.raises(OptionError, match="there is no backend 'pyhton'") as caught:
        compiled.save(tmp_path / "out", emit=["pyhton"])
    assert caught.value.hint == "one of python"
    with pytest.raises(OptionError, match="no backend is named"):
        compiled.save(tmp_path / "out", emit=[])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_size_of_a_weights_file_is_known_beforehand(dtype: torch.dtype) -> None:
    model = Residual().to(dtype)
    model.register_buffer("more", torch.zeros(3, dtype=torch.bool))
    program = secateur.trace(model.eval(), torch.zeros(1, 3, 8, 8, dtype=dtype))
    state = dict(program.module.state_dict())
    assert "more" not in state  # the graph does not use it
    assert weights_file_size(program) == len(weights_file.to_bytes(state, {"format": "pt"}))


def test_an_example_is_measured_on_its_test_images() -> None:
    source = sources.resolve("digits")
    compiled = secateur.compile(source.module, IMAGE[:, :1], pipeline="prune{ratio=0.1}", source=source.spec)
    example = source.example
    assert example is not None
    measured = compiled.report["accuracy"]
    assert measured["before"] == examples.accuracy(source.module, example.test_images, example.test_labels)
    assert measured["after"] == examples.accuracy(compiled.module, example.test_images, example.test_labels)
    assert measured["images"] == 450
    program = secateur.trace(source.module, IMAGE[:, :1])
    again = secateur.compile(program, pipeline="prune{ratio=0.1}", source=source.spec, verify=False)
    assert again.report["accuracy"] == measured
