"""``secateur train`` as users type it: what it writes, resumes and refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import secateur
from secateur.backends.training.callback import Run
from secateur.backends.training.methods.soft import SoftPruning

Invoke = Callable[..., tuple[int, str, str]]
QUICK = ("--data", "digits", "--images", "300", "--batch-size", "50", "--lr", "0.05", "--weights", "none")


def top1(directory: str) -> list[float]:
    lines = Path(directory, "training.jsonl").read_text().splitlines()
    return [json.loads(line)["top1"] for line in lines]


def test_what_it_writes_is_an_artefact_with_its_history(invoke: Invoke) -> None:
    code, out, err = invoke("train", "digits", *QUICK, "--epochs", "2", "-o", "made")
    assert code == 0, err
    assert "trained for 2 epochs" in out
    assert err.count("epoch ") == 2
    report = json.loads(Path("made/report.json").read_text())
    assert report["training"]["recipe"]["epochs"] == 2
    assert report["training"]["data"]["images"] == 300
    assert report["training"]["top1"] == top1("made")[-1] == report["accuracy"]["after"]
    assert Path("made/training.csv").read_text().startswith("epoch,loss,lr,top1")
    assert Path("made/curves.svg").read_text().startswith("<svg")
    assert not Path("made.run").exists()
    assert secateur.load(Path("made"))(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert invoke("verify", "made")[0] == 0


def test_what_was_trained_is_pruned_fine_tuned_and_proven(invoke: Invoke) -> None:
    assert invoke("train", "digits", *QUICK, "--epochs", "2", "-o", "dense")[0] == 0
    assert invoke("compile", "dense", "--pipeline", "prune{macs=0.5}", "-o", "pruned")[0] == 0
    words = ("--data", "digits", "--images", "300", "--epochs", "1", "--lr", "0.01")
    assert invoke("train", "pruned", *words, "--distill", "0.5", "-o", "tuned")[0] == 0
    pruned, tuned = (json.loads(Path(d, "report.json").read_text()) for d in ("pruned", "tuned"))
    assert tuned["after"]["macs"] == pruned["after"]["macs"]
    assert tuned["training"]["top1"] > pruned["accuracy"]["after"]
    for directory in ("dense", "pruned", "tuned"):
        assert invoke("verify", directory)[0] == 0


@pytest.mark.parametrize("more", [(), ("--ema", "0.9")])
def test_a_method_compacts_at_the_end(invoke: Invoke, more: tuple[str, ...]) -> None:
    words = ("--method", "soft{rate=0.4}", "--epochs", "3", "--json", "-o", "soft", *more)
    code, out, err = invoke("train", "digits", *QUICK, *words)
    assert code == 0, err
    report = json.loads(out)
    assert report["kept"]["params"] < 0.6
    assert report["accuracy"]["before"] == report["accuracy"]["after"]
    assert report["training"]["methods"] == ["soft{rate=0.4}"]
    assert invoke("verify", "soft")[0] == 0
    weights = Path("soft/trained.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    code, _, err = invoke("verify", "soft")
    assert code == 2
    assert "trained weights are not those" in err


@pytest.mark.parametrize("more", [(), ("--ema", "0.9")])
def test_an_interrupted_run_is_continued_to_the_same_result(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    words = ("train", "digits", *QUICK, "--epochs", "3", "--method", "soft{rate=0.3}", *more)
    assert invoke(*words, "-o", "whole")[0] == 0
    finished = SoftPruning.after_epoch

    def interrupted(self: SoftPruning, run: Run) -> None:
        if run.epoch == 2:
            raise KeyboardInterrupt
        finished(self, run)

    monkeypatch.setattr(SoftPruning, "after_epoch", interrupted)
    assert invoke(*words, "-o", "broken")[0] == 130
    assert not Path("broken").exists()
    monkeypatch.setattr(SoftPruning, "after_epoch", finished)
    code, _, err = invoke(*words, "-o", "broken")
    assert code == 2
    assert "--resume continues it, --force begins anew" in err
    assert invoke(*words, "--resume", "-o", "broken")[0] == 0
    assert top1("broken") == top1("whole")
    first, second = (Path(d, "model.safetensors").read_bytes() for d in ("broken", "whole"))
    assert first == second
    assert not Path("broken.run").exists()


def test_scratch_draws_all_weights_anew(invoke: Invoke) -> None:
    assert invoke("compile", "digits", "--pipeline", "prune{macs=0.5}", "-o", "pruned")[0] == 0
    words = ("--data", "digits", "--images", "300", "--epochs", "2", "--from-scratch", "--same-compute", "--lr", "0.05")
    assert invoke("train", "pruned", *words, "-o", "scratch")[0] == 0
    run = json.loads(Path("scratch/report.json").read_text())["training"]
    assert run["before"]["top1"] < 40
    assert run["epochs"] == 4  # for half of the MACs, twice the epochs


def test_class_folders_are_trained_on(invoke: Invoke) -> None:
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 12), ("test", 4)):
        for place, name in enumerate("ab"):
            Path("images", part, name).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 100, (32, 32, 3), generator=generator) + 150 * place
                Image.fromarray(pixels.clamp(0, 255).to(torch.uint8).numpy()).save(f"images/{part}/{name}/{index}.png")
    model = "cifar-resnet20{depth=8 classes=2}"
    words = ("--epochs", "3", "--batch-size", "8", "--lr", "0.05", "-o", "made", "--json")
    code, out, err = invoke("train", model, "--data", "images", *words)
    assert code == 0, err
    report = json.loads(out)
    assert report["training"]["data"]["test_images"] == 8
    assert report["training"]["top1"] == 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "nowhere"), "there is no folder 'nowhere'"),
        (("--data", "."), "nothing says what to test on"),
        (("--data", "digits", "--lr", "0"), "lr is 0"),
        (("--data", "digits", "--method", "sift"), "no training method 'sift'"),
        (("--data", "digits", "--method", "soft{rate=2}"), "rate=2"),
        (("--data", "digits", "--resume"), "no interrupted run to resume"),
        (("--data", "digits", "--teacher", "digits"), "no share in the loss"),
        (("--data", "digits", "--distill", "0.5"), "nothing says who teaches"),
        (("--data", "digits", "--same-compute"), "only a pruned artefact"),
        (("--data", "digits", "--schedule", "never"), "invalid choice: 'never'"),
        (("--data", "digits", "--milestones", "a:b"), "numbers with colons"),
    ],
)
def test_what_makes_no_sense_is_one_message(invoke: Invoke, words: tuple[str, ...], said: str) -> None:
    code, out, err = invoke("train", "digits", *words, "--quiet", "-o", "made")
    assert (code, out) == (2, "")
    assert said in err
    assert not Path("made").exists()
    assert not Path("made.run").exists()


def test_a_network_is_given_the_classes_of_the_data(invoke: Invoke) -> None:
    """Pruned first, by the command line throughout: another head, other images, proven again from its files."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for place, name in enumerate("abc"):
            Path("images", part, name).mkdir(parents=True)
            for index in range(8):
                pixels = torch.randint(0, 80, (8, 8), generator=generator)
                pixels[:, 3 * place : 3 * place + 2] += 150
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(f"images/{part}/{name}/{index}.png")
    assert invoke("compile", "digits", "--pipeline", "prune{macs=0.5}", "-o", "pruned")[0] == 0
    words = ("train", "pruned", "--data", "images", "--batch-size", "8", "--augment", "none", "--epochs")
    code, out, err = invoke(*words, "1", "-o", "unused")
    assert code == 0, err
    assert "10 for 3 classes: --new-head gives the network as many as there are classes" in out
    code, out, err = invoke(*words, "8", "--new-head", "-o", "made")
    assert code == 0, err
    assert "--new-head" not in out
    report = json.loads(Path("made/report.json").read_text())
    assert report["training"]["outputs"] == 3
    assert report["training"]["top1"] > 90
    assert secateur.load(Path("made"))(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert invoke("verify", "made")[0] == 0
    assert invoke("compile", "made", "--pipeline", "prune{macs=0.7}", "-o", "smaller")[0] == 0
    assert invoke("verify", "smaller")[0] == 0
    code, _, err = invoke(*words, "1", "--new-head", "--distill", "0.5", "-o", "taught")
    assert code == 2
    assert "the teacher has 10 outputs and the network 3" in err
