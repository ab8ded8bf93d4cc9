"""The command line: what it prints where, exit codes, and one message for every mistake."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import secateur
from secateur.backends import weights_file
from secateur.cli import main

CODE = """
import torch
from torch import nn

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))
"""
FAST = ["--pipeline", "prune{ratio=0.3}"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty directory; returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


# Compile.


def test_compile_shows_widths_costs_proof_accuracy_and_next_steps(run: Run) -> None:
    code, out, err = run("compile", "digits", *FAST, "-o", "out")
    assert code == 0
    for text in (
        "conv1",
        "16",
        "parameters",
        "MACs",
        "weights file",
        "top-1 accuracy  99.11%",
        "proven",
        "python out/model.py",
    ):
        assert text in out
    assert err.splitlines()[:3] == [
        "secateur: loading digits",
        "secateur: tracing Digits",
        "secateur: running prune{ratio=0.3}",
    ]
    assert (
        sorted(path.name for path in Path("out").iterdir())
        == "model.py model.safetensors plan.json report.json".split()
    )


def test_compile_json_is_one_object_and_nothing_else(run: Run) -> None:
    code, out, err = run("compile", "digits", *FAST, "-o", "out", "--json", "--quiet", "--seed", "3")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["directory"] == "out"
    assert found["seed"] == 3
    assert found == {"directory": "out", **json.loads(Path("out/report.json").read_text())}


def test_a_pruned_model_is_pruned_again_and_verified(run: Run) -> None:
    assert run("compile", "digits", *FAST, "-o", "one", "--quiet", "--no-verify")[0] == 0
    code, out, _ = run("compile", "one", *FAST, "-o", "two", "--quiet")
    assert code == 0
    assert "top-1 accuracy" in out
    code, out, _ = run("verify", "two", "--quiet")
    assert code == 0
    assert "two is proven" in out
    assert json.loads(run("verify", "two", "--quiet", "--json")[1])["holds"]
    weights = weights_file.read(Path("two/model.safetensors"))
    weights_file.save({**weights, "fc.bias": weights["fc.bias"] + 1}, Path("two/model.safetensors"))
    code, out, err = run("verify", "two", "--quiet")
    assert (code, out) == (1, "")
    assert err.startswith("secateur: 'fc.bias' is not the original's")


def test_debugging_aids_go_to_stderr(run: Run) -> None:
    options = ["--print-ir-after-all", "--time-passes", "--dump-dir", "dump"]
    code, out, err = run("compile", "digits", *FAST, "-o", "out", "--json", *options)
    assert code == 0
    json.loads(out)
    assert "# after prune{ratio=0.3}\nDigits(x: float32[1, 1, 8, 8])" in err
    assert err.rstrip().endswith("s  prune")
    assert sorted(path.name for path in Path("dump").iterdir()) == ["000_input.txt", "001_prune.txt"]


def test_emit_force_and_no_verify(run: Run) -> None:
    assert run("compile", "digits", *FAST, "-o", "out", "--quiet", "--no-verify", "--emit", "pt2")[0] == 0
    assert Path("out/model.pt2").exists()
    assert not Path("out/model.py").exists()
    code, out, _ = run("compile", "digits", *FAST, "-o", "out", "--quiet", "--no-verify", "--force")
    assert code == 0
    assert "not at all: --no-verify was given" in out
    assert not Path("out/model.pt2").exists()


def test_random_weights_are_announced_in_one_line(run: Run) -> None:
    _, _, err = run("inspect", "squeezenet1_1")
    assert err.count("weights are random") == 1
    assert "random" not in run("inspect", "squeezenet1_1", "--weights", "none")[2]
    assert "random" not in run("inspect", "squeezenet1_1", "--quiet")[2]


def test_of_a_launchers_processes_the_first_one_talks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ("0", "1", "10"):
        monkeypatch.setenv("RANK", rank)
        assert bool(run("inspect", "digits")[2]) is (rank == "0")


def test_long_models_are_summarised(run: Run) -> None:
    code, out, _ = run("compile", "mobilenet_v2", *FAST, "-o", "out", "--quiet", "--no-verify", "--input", "1x3x32x32")
    assert code == 0
    assert "groups; those of the same widths stand together" in out
    assert len(out.splitlines()) < 60


# Inspect, explain, list.


def test_inspect(run: Run) -> None:
    code, out, _ = run("inspect", "digits", "--quiet")
    assert code == 0
    assert out.startswith("Digits (x 1x1x8x8): 10 groups of coupled layers")
    assert json.loads(run("inspect", "digits", "--format", "json")[1])["format"] == 1
    code, out, _ = run("inspect", "digits", "--format", "graphml", "-o", "graph.xml", "--quiet")
    assert (code, out) == (0, "")
    assert Path("graph.xml").read_text().startswith("<graphml")


def test_explain(run: Run) -> None:
    code, out, _ = run("explain", "digits", "conv1", "layer1.1.conv2", "--quiet")
    assert code == 0
    assert out.startswith("conv1 and layer1.1.conv2 are coupled")
    assert json.loads(run("explain", "digits", "fc", "--json")[1])["prunable"] == 0


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("models", "digits  (example with weights and data)\ncifar-vgg11  (zoo: "),
        ("passes", " remove the least important channels, within a budget\n"),
        ("criteria", "l2               Euclidean norm"),
        ("backends", "pt2       writes model.pt2: torch.export program"),
        ("presets", ""),
    ],
)
def test_list(run: Run, what: str, text: str) -> None:
    code, out, err = run("list", what)
    assert (code, err) == (0, "")
    assert text in out
    assert list(json.loads(run("list", what, "--json")[1])) == [what]


def test_no_arguments_at_all_show_the_help(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    assert "compile" in out


# Mistakes: one message, exit 2, nothing written, no traceback.

COMPILE = ["compile", "digits", "-o", "out"]


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["compile", "resnet81", "-o", "out"], ["no model is called 'resnet81'", "did you mean resnet18"]),
        ([*COMPILE, "--weights", "odd.safetensors"], ["the weights do not fit the model", "1 not in the model: w"]),
        ([*COMPILE, "--weights", "code.pth"], ["refused to read the weights", "wants to run code"]),
        ([*COMPILE, "--weights", "absent.pth"], ["there is no such weights file"]),
        ([*COMPILE, "--weights", "IMAGENET1K_V1"], ["digits has no published weights 'IMAGENET1K_V1'"]),
        ([*COMPILE, "--input", "1x3x8x8"], ["conv1 does not accept inputs of shape (1, 3, 8, 8)", "--input"]),
        ([*COMPILE, "--input", "3,8,8"], ["cannot read the input shape '3,8,8'", "--input 1x3x224x224"]),
        ([*COMPILE, "--input", "1x0x8x8"], ["cannot read the input shape '1x0x8x8'"]),
        ([*COMPILE, "--input", "1x1x8x8", "--input", "1x1"], ["DigitsNet takes 1 to 1 inputs (x); 2 given"]),
        ([*COMPILE, "--pipeline", "prune{macs=0.5"], ["prune{macs=0.5", "^"]),
        ([*COMPILE, "--pipeline", "prun{macs=0.5}"], ["there is no pass 'prun'", "'prune'"]),
        ([*COMPILE, "--pipeline", "@tiny"], ["there is no preset '@tiny'"]),
        ([*COMPILE, "--pipeline", "prune{mac=0.5}"], ["pass 'prune' has no option 'mac'", "'macs'"]),
        ([*COMPILE, "--pipeline", "prune{macs=1.5}"], ["macs=1.5 is out of range", "0 < macs <= 1"]),
        ([*COMPILE, "--pipeline", "prune{macs=0.01 min-width=14}"], ["macs=0.01 cannot be reached", "or more"]),
        ([*COMPILE, "--pipeline", "prune{macs=0.5 exclude=cnv1}"], ["exclude names no layer: 'cnv1'", "conv1"]),
        ([*COMPILE, "--emit", "onxn"], ["there is no backend 'onxn'", "try: one of onnx"]),
        ([*COMPILE, "-p", "x"], ["unknown option '-p'", "--pipeline or "]),
        ([*COMPILE, "--seed", "x"], ["argument --seed: invalid int value"]),
        ([*COMPILE, "prune{ratio=0.5}"], ["argument 'prune{ratio=0.5}'", "try: --pipeline 'prune{ratio=0.5}'"]),
        (["compile", "digits"], ["the following arguments are required: -o"]),
        (["compil", "digits"], ["invalid choice: 'compil'"]),
        (["compile", "digits", "-o", "standing"], ["the output directory exists already", "--force"]),
        (["compile", "digits", "-o", "standing", "--force"], ["holds other files than an artefact's"]),
        (["compile", "digits", "-o", "standing/notes.txt/out"], ["no permission|cannot"]),
        (["compile", "mine_cli:Branching", "-o", "out"], ["cannot trace Branching", "mine_cli.py"]),
        (["compile", "mine_cli:Absent", "-o", "out"], ["module 'mine_cli' has no 'Absent'", "Branching"]),
        (["compile", "no_such_module_here:net", "-o", "out"], ["there is no Python module"]),
        (["compile", "odd.safetensors", "-o", "out"], ["a file of weights does not say what model they belong to"]),
        (["inspect", "digits", "--format", "svg"], ["the format 'svg' is not there yet"]),
        (["inspect", "digits", "-o", "absent/x.json"], ["there is no such directory"]),
        (["explain", "digits", "cnv1"], ["there is no layer 'cnv1' with channels", "nearest: conv1"]),
        (["explain", "digits", "layer1.0"], ["'layer1.0' is not one layer but holds several", "layer1.0.conv1"]),
        (["explain", "digits", "relu"], ["layer 'relu' has no channels of its own"]),
        (["verify", "absent"], ["there is no such artefact directory"]),
        (["verify", "standing"], ["the artefact has no report.json"]),
        (["sensitivity", "digits", "--data", "digits"], ["the following arguments are required: -o"]),
        (["sensitivity", "digits", "--data", "digits", "-o", "standing/notes.txt"], ["no file of sensitivities"]),
        (["sensitivity", "digits", "--data", "digits", "-o", "x", "--ratios", "1"], ["expected numbers between 0 and"]),
        (["sensitivity", "digits", "--data", "absent", "-o", "x"], ["there is no folder 'absent'"]),
        (["compare", "digits", "--data", "digits", "--plot", "absent/x.svg"], ["there is no such directory"]),
        (["compare", "digits", "--data", "digits", "--criteria", "l2,l3"], ["unknown criterion 'l3'"]),
        (["compare", "digits", "--data", "digits", "--scopes", "local"], ["scope", "local"]),
        (["compare", "digits", "--data", "digits", "--pipeline", "prun"], ["there is no pass 'prun'"]),
        (["list", "things"], ["invalid choice: 'things'"]),
        (["--debugg"], ["unknown option '--debugg'|no command"]),
    ],
    ids=" ".join,
)  # fmt: skip
def test_mistakes(run: Run, tmp_path: Path, arguments: list[str], messages: list[str]) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "odd.safetensors")
    torch.save(main, tmp_path / "code.pth")
    (tmp_path / "mine_cli.py").write_text(CODE)
    (tmp_path / "standing").mkdir()
    (tmp_path / "standing" / "notes.txt").write_text("mine")
    before = listing(tmp_path)
    sys.modules.pop("mine_cli", None)
    quiet = ["--quiet"] if len(arguments) > 1 and arguments[0] != "compil" else []
    code, out, err = run(*arguments, *quiet)
    assert code == 2, err
    assert out == ""
    assert err.startswith("secateur: ")
    assert err.count("secateur: ") == 1
    assert "Traceback" not in err
    for message in messages:
        assert any(choice in err for choice in message.split("|")), err
    assert listing(tmp_path) == before


def listing(directory: Path) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*") if "__pycache__" not in str(path))


def test_a_full_disk_leaves_nothing_behind(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(state: object, path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights_file, "save", half)
    code, out, err = run("compile", "digits", *FAST, "-o", "deep/out", "--quiet")
    assert (code, out) == (2, "")
    assert "the artefact cannot be written: No space left on device" in err
    assert listing(tmp_path) == []


def test_debug_shows_the_traceback_before_the_message(run: Run) -> None:
    code, _, err = run("compile", "resnet81", "-o", "out", "--debug", "--quiet")
    assert code == 2
    assert "Traceback" in err
    assert "secateur: no model is called 'resnet81'" in err


def test_bugs_of_ours_say_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.passes.prune.prune import Prune

    def fails(self: Prune, program: object) -> None:
        raise KeyError("conv9")

    monkeypatch.setattr(Prune, "run", fails)
    code, _, err = run("compile", "digits", *FAST, "-o", "out", "--quiet")
    assert code == 1
    assert "pass 'prune{ratio=0.3}' failed: KeyError: 'conv9'" in err
    assert "a bug of secateur" in err


def test_an_interrupt_is_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.passes.prune.prune import Prune

    def interrupted(self: Prune, program: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Prune, "run", interrupted)
    code, _, err = run("compile", "digits", *FAST, "-o", "out", "--quiet")
    assert (code, err) == (130, "secateur: interrupted\n")


# The installed program.


@pytest.mark.parametrize(
    "arguments", [["--help"], ["compile", "--help"], ["compare", "--help"], ["list", "models"], ["list", "criteria"]]
)
def test_help_and_lists_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom secateur.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(sorted({'torch', 'numpy', 'rich', 'networkx', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr.strip() == "[]"


def test_the_installed_program() -> None:
    program = Path(sys.executable).with_name("secateur")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"secateur {secateur.__version__}\n"
    done = subprocess.run([program, "compile", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("secateur: the following arguments are required: -o")


QUANTIZE = ["--pipeline", "prune{macs=0.8},fold-bn,quantize{observer=minmax}"]


def test_quantize_evaluate_bench_and_verify(run: Run) -> None:
    code, out, err = run("compile", "digits", *QUANTIZE, "--data", "digits", "--images", "128", "-o", "small")
    assert code == 0, err
    assert "128 images of digits" in err
    assert "100.0% of the MACs in int8" in out
    report = json.loads(Path("small/report.json").read_text())
    assert report["data"]["images"] == 128
    assert [s["contract"] for s in report["verification"]["stretches"]] == ["masked", "exact", "approximate"]

    code, out, err = run("verify", "small", "--quiet")
    assert code == 0, err
    assert "is proven" in out

    code, out, err = run("evaluate", "small", "--data", "digits", "--quiet", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["top1"] == pytest.approx(report["accuracy"]["after"])
    assert found["images"] == 450

    code, out, err = run("bench", "small", "--repeats", "2", "--quiet", "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [row["candidate"] for row in rows] == ["original", "small"]

    # Somebody who changes one weight is found out.
    weights = weights_file.read(Path("small/model.safetensors"))
    save_file({**weights, "conv1.weight": weights["conv1.weight"].flip(0)}, Path("small/model.safetensors"))
    code, out, err = run("verify", "small", "--quiet")
    assert code == 1
    assert "'conv1.weight' is not what the pipeline makes of the original" in err


def test_calibrating_on_noise_is_said(run: Run) -> None:
    code, _, err = run("compile", "digits", *QUANTIZE, "-o", "small", "--no-verify")
    assert code == 0
    assert "quantize calibrates on random noise, since no --data are given" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "digits"], "required: --data"),
        (["evaluate", "digits", "--data", "nowhere"], "nowhere"),
        (["evaluate", "digits", "--data", "digits", "--backend", "onx"], "there is no engine 'onx'"),
        (["bench"], "required: DIR|MODEL"),
        (["bench", "digits", "--threads", "0"], "expected whole numbers with commas between, found '0'"),
        (["compile", "digits", *QUANTIZE, "--data", "nowhere", "-o", "x"], "nowhere"),
        (["compile", "digits", *QUANTIZE, "--data", "digits", "--preprocess", "crop=x", "-o", "x"], "crop"),
    ],
)
def test_mistakes_with_data(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments, "--quiet") if len(arguments) > 1 else run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not Path("x").exists()
