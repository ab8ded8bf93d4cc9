"""Experiments: every row can be built, and two small ones run from end to end."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from secateur.backends.training import chain
from secateur.backends.training.chain import Settings, recipe_of
from secateur.backends.training.experiments import EXPERIMENTS, Compile, Experiment, Train
from secateur.backends.training.methods.catalog import build
from secateur.backends.training.schedule import milestones
from secateur.compiler import zoo
from secateur.compiler.capture import trace
from secateur.passes.pipeline import PassPipeline

Invoke = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_stage_can_be_built(name: str) -> None:
    entry = EXPERIMENTS[name]
    assert zoo.is_name(entry.model)
    seen = {chain.SELF}
    for stage in entry.stages:
        assert not stage.of or stage.of in seen
        seen.add(stage.name)
        if isinstance(stage, Compile):
            assert PassPipeline.parse(stage.pipeline).passes
        else:
            recipe = recipe_of(stage, Settings("x", Path("x")))
            assert all(0 < m < recipe.epochs for m in milestones(recipe)) or recipe.schedule != "multistep"
            assert not stage.method or build(stage.method)


@pytest.mark.parametrize("name", ["hard-resnet32-avoiding", "hard-resnet32-including"])
def test_what_goes_is_what_the_seed_says(name: str) -> None:
    (pruning,) = [s for s in EXPERIMENTS[name].stages if isinstance(s, Compile)]
    network = zoo.network("cifar-resnet32")
    program = trace(network.build().eval(), torch.zeros(network.input_shape))
    made = PassPipeline.parse(pruning.pipeline).run(program, verify=False).program.module
    inner = {len(made.get_parameter(f"layer{n}.0.conv1.weight")) for n in (1, 2, 3)}
    trunk = len(made.get_parameter("conv1.weight"))
    assert inner == {14, 28, 56}
    assert trunk == (16 if name.endswith("avoiding") else 14)


def test_scale_makes_fewer_epochs_and_at_least_one() -> None:
    stage = EXPERIMENTS["pfec-resnet56-a"].stages[0]
    assert isinstance(stage, Train)
    assert recipe_of(stage, Settings("x", Path("x"), scale=0.05)).epochs == 8
    assert recipe_of(stage, Settings("x", Path("x"), scale=1e-6)).epochs == 1
    assert recipe_of(stage, Settings("x", Path("x"), changes={"lr": 0.3})).lr == 0.3
    settings = Settings("x", Path("x"), changes={"lr": 0.3}, later={"lr": 0.01}, least_epochs=3, scale=1e-6)
    assert recipe_of(stage, settings).lr == 0.3
    assert recipe_of(stage, settings, first=False).lr == 0.01
    assert recipe_of(stage, settings, first=False).epochs == 3


@pytest.fixture
def invoke(invoke: Invoke) -> Invoke:
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 16), ("test", 8)):
        for label in range(10):
            folder = Path("images", part, str(label))
            folder.mkdir(parents=True)
            for index in range(count // 8):
                pixels = torch.randint(0, 256, (32, 32, 3), generator=generator).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return invoke


SMALL = ("--data", "images", "--scale", "0.001", "--batch-size", "10", "--warmup", "0")


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two experiments on a network that trains in no time."""
    made = {
        "hard": Experiment(
            "cifar-resnet20{depth=8}",
            (Train("dense", {}), Compile("pruned", "prune{ratio=0.25}"), Train("tuned", {"lr": 0.01})),
            "nothing",
        ),
        "soft": Experiment("cifar-resnet20{depth=8}", (Train("soft", {}, "soft{rate=0.25}"),), "nothing"),
    }
    for name, entry in made.items():
        monkeypatch.setitem(EXPERIMENTS, name, entry)


def test_a_chain_runs_and_continues(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    code, out, err = invoke("experiment", "hard", *SMALL, "--json", "-o", "made")
    assert code == 0, err
    results = json.loads(out)
    assert [row["stage"] for row in results["stages"]] == ["dense", "pruned", "tuned"]
    dense, pruned, tuned = results["stages"]
    assert pruned["params"] == tuned["params"] < dense["params"]
    assert pruned["same_as_masked"] == 10
    assert results["finished"]
    assert "| pruned | 0 |" in Path("made/results.md").read_text()
    for stage in ("dense", "pruned", "tuned"):
        assert invoke("verify", f"made/{stage}")[0] == 0
    before = Path("made/dense/model.safetensors").stat().st_mtime_ns
    code, out, err = invoke("experiment", "hard", *SMALL, "-o", "made")
    assert code == 0
    assert err.count("finished before") == 3
    assert Path("made/dense/model.safetensors").stat().st_mtime_ns == before
    code, _, err = invoke("experiment", "soft", *SMALL, "-o", "made")
    assert code == 2
    assert "another experiment" in err


def test_later_stages_may_have_numbers_of_their_own(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    code, _, err = invoke("experiment", "hard", *SMALL, "--later", "--lr 0.003 --schedule cosine", "-o", "made")
    assert code == 0, err
    recipes = [json.loads(Path("made", s, "report.json").read_text())["training"]["recipe"] for s in ("dense", "tuned")]
    assert [recipe["lr"] for recipe in recipes] == [0.1, 0.003]
    code, _, err = invoke("experiment", "hard", *SMALL, "--later", "--lr fast", "-o", "other")
    assert code == 2
    assert "--later" in err


def test_a_method_leaves_the_network_that_it_masked(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    code, out, err = invoke("experiment", "soft", *SMALL, "--json", "-o", "made")
    assert code == 0, err
    (row,) = json.loads(out)["stages"]
    assert row["same_as_masked"] == 10
    assert row["how"] == "soft{rate=0.25}"
    assert "\nsoft: `soft{rate=0.25}`.\n" in Path("made/results.md").read_text()


def test_given_weights_stand_for_the_first_stage(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    assert invoke("compile", "cifar-resnet20{depth=8}", "--pipeline", "eliminate-dead-code", "-o", "given")[0] == 0
    words = ("--weights", "given/model.safetensors", "--json", "-o", "made")
    code, out, err = invoke("experiment", "hard", *SMALL, *words)
    assert code == 0, err
    dense = json.loads(out)["stages"][0]
    assert (dense["stage"], dense["epochs"]) == ("dense", 0)
    assert Path("made/dense/model.safetensors").read_bytes() == Path("given/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [(("nothing",), "there is no experiment 'nothing'"), (("hard-vgg16", "--scale", "0"), "scale is 0")],
)
def test_nonsense_is_refused(invoke: Invoke, words: tuple[str, ...], said: str) -> None:
    code, _, err = invoke("experiment", *words, "--data", "images", "-o", "made")
    assert code == 2
    assert said in err
    assert not Path("made").exists()
