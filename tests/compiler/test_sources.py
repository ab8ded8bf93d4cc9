"""MODEL and --weights as text: what they resolve to, what is recorded, and what every mistake is told."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.compiler import examples, sources, vision
from secateur.compiler.errors import SourceError
from secateur.compiler.sources import ModelSource, list_models, rebuild, resolve

SMALL = "squeezenet1_1"
CODE = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

class Box:
    make = Net

def make_net():
    from HELPER import width
    return nn.Linear(width, 3)

def boom():
    raise ValueError("boom")

def leave():
    sys.exit(3)

def number():
    return 42

def volume():
    return nn.Conv3d(3, 4, 3)

def timm_like():
    net = Net()
    net.default_cfg = {"input_size": (2, 64, 48)}
    return net

def sized():
    net = Net()
    net.image_size = 32
    return net

needs = lambda x: Net()
ready = Net()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own in the current directory; its name is new in every test, for imports are cached."""
    name = "mine_" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]
    (tmp_path / f"{name}.py").write_text(CODE.replace("HELPER", f"{name}_helper"))
    (tmp_path / f"{name}_helper.py").write_text("width = 5")
    monkeypatch.chdir(tmp_path)
    return name


def error_of(model: str, **options: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        resolve(model, **options)
    return caught.value


def same(first: ModelSource, second: ModelSource) -> bool:
    a, b = first.module.state_dict(), second.module.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def assert_rebuilds(source: ModelSource) -> None:
    again = rebuild(json.loads(json.dumps(source.spec)))
    assert same(source, again)
    assert (again.name, again.kind, again.input_shapes) == (source.name, source.kind, source.input_shapes)
    assert (again.preprocess, again.class_name) == (source.preprocess, source.class_name)


# Names.


def test_listing_needs_no_torch_and_is_quick() -> None:
    code = "import sys\nfrom secateur.compiler.sources import list_models\nlist_models()\nprint('torch' in sys.modules)"
    start = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
    assert time.perf_counter() - start < 2  # 0.1 s; generous, for machines under load


def test_the_shipped_list_is_that_of_the_newest_torchvision() -> None:
    torchvision = vision.import_torchvision()
    if tuple(map(int, torchvision.__version__.split(".")[:2])) < (0, 29):
        pytest.skip("compares with torchvision 0.29 or newer")
    assert list_models()["torchvision"] == tuple(torchvision.models.list_models())


def test_a_torchvision_name() -> None:
    source = resolve(SMALL)
    assert (source.name, source.class_name, source.kind) == (SMALL, "SqueezeNet1_1", "torchvision")
    assert source.input_shapes == ((1, 3, 224, 224),)
    assert not source.module.training
    assert source.example is None
    assert source.preprocess is None
    assert source.spec == {"kind": "torchvision", "model": SMALL, "weights": "none", "seed": 0}
    assert_rebuilds(source)


@pytest.mark.parametrize("name", ["googlenet", "quantized_shufflenet_v2_x0_5", "regnet_x_400mf"])
def test_names_that_need_care_build_in_floating_point_without_a_warning(name: str) -> None:
    source = resolve(name)
    assert all(p.dtype == torch.float32 for p in source.module.parameters())


def test_random_weights_come_from_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first = resolve(SMALL, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert same(first, resolve(SMALL, seed=1))
    assert not same(first, resolve(SMALL, seed=2))
    assert first.spec["seed"] == 1
    assert_rebuilds(first)


def test_unknown_names() -> None:
    error = error_of("resnet81")
    assert error.what == "no model is called 'resnet81'"
    assert "did you mean resnet18 or" in str(error)
    assert "secateur list models" in str(error)
    assert "digits" in str(error_of("digit"))
    assert "MODEL is a name (torchvision, zoo, example), `module.path:callable`" in str(error_of("qqqqqqqq"))


def test_a_listed_name_that_this_torchvision_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "has_model", lambda _: False)
    error = error_of(SMALL)
    assert f"has no model '{SMALL}'" in error.what
    assert error.hint == "install a newer torchvision"


def test_a_name_that_only_this_torchvision_has(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"examples": ("digits",), "torchvision": ()}
    monkeypatch.setattr(sources, "list_models", lambda: listed)
    assert resolve(SMALL).kind == "torchvision"


# Files.


def test_a_weights_file_is_recorded_found_again_and_may_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = resolve(SMALL, seed=3)
    save_file(wanted.module.state_dict(), "w.safetensors")
    source = resolve(SMALL, weights="w.safetensors")
    assert same(source, wanted)
    assert source.spec["weights_file"] == str(tmp_path / "w.safetensors")
    monkeypatch.chdir("/")
    assert_rebuilds(source)
    (tmp_path / "w.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(SourceError, match="there is no such weights file"):
        rebuild(source.spec)
    assert same(rebuild(source.spec, weights=str(tmp_path / "moved.safetensors")), wanted)


def test_a_weights_file_that_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(examples.build("digits").state_dict(), path)
    spec = resolve("digits", weights=str(path)).spec
    save_file(examples.build("digits").state_dict(), path)
    with pytest.raises(SourceError, match="the weights of digits are not those that were recorded") as caught:
        rebuild(spec)
    assert caught.value.where == str(path)
    assert spec["weights_sha256"] in str(caught.value)


def test_a_weights_file_that_does_not_fit(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors")
    assert "1 not in the model: w" in str(error_of(SMALL, weights=str(tmp_path / "w.safetensors")))
    assert "there is no such weights file" in str(error_of(SMALL, weights="absent.pth"))


# Examples.


def test_an_example_comes_with_its_weights_and_its_data() -> None:
    source = resolve("digits")
    assert (source.name, source.class_name, source.kind) == ("digits", "Digits", "example")
    assert source.input_shapes == ((1, 1, 8, 8),)
    assert source.example is not None
    assert source.spec["weights"] == "default"
    assert examples.accuracy(source.module, source.example.test_images, source.example.test_labels) > 98
    assert same(source, resolve("digits", weights="default", seed=4))
    assert_rebuilds(source)


def test_an_example_with_random_weights() -> None:
    source = resolve("digits", weights="none", seed=4)
    assert not same(source, resolve("digits"))
    assert not same(source, resolve("digits", weights="none", seed=5))
    assert_rebuilds(source)


def test_an_example_has_no_named_weights() -> None:
    error = error_of("digits", weights="IMAGENET1K_V1")
    assert error.what == "digits has no published weights 'IMAGENET1K_V1'"
    assert error.hint == "default, none, or a file"


# The user's own models.


def test_a_callable_in_the_current_directory(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = list(sys.path)
    source = resolve(f"{mine}:make_net")
    assert sys.path == path
    assert (source.name, source.class_name, source.kind) == ("make_net", "MakeNet", "callable")
    assert source.input_shapes == ((1, 5),)
    assert same(source, resolve(f"{mine}:make_net"))
    assert not same(source, resolve(f"{mine}:make_net", seed=1))
    monkeypatch.chdir("/")
    assert_rebuilds(source)


def test_a_class_a_nested_name_and_weights(mine: str) -> None:
    first = resolve(f"{mine}:Net")
    assert first.class_name == "Net"
    assert first.input_shapes == ((1, 2, 224, 224),)
    torch.save(first.module.state_dict(), "w.pth")
    source = resolve(f"{mine}:Box.make", weights="w.pth", seed=9)
    assert source.name == "make"
    assert same(first, source)
    assert_rebuilds(source)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [("volume", ((1, 3, 16, 112, 112),)), ("timm_like", ((1, 2, 64, 48),)), ("sized", ((1, 2, 32, 32),))],
)
def test_guessed_inputs(mine: str, name: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    assert resolve(f"{mine}:{name}").input_shapes == shapes


def test_inputs_of_a_model_without_layers() -> None:
    assert resolve("torch.nn:Identity").input_shapes == ((1, 3, 224, 224),)


def test_a_module_that_is_not_there(mine: str) -> None:
    error = error_of("no_such_package_here.models:net")
    assert error.what == "there is no Python module 'no_such_package_here'"
    assert error.where == "no_such_package_here.models:net"
    assert f"looked in {Path.cwd()} and in the installed packages" in str(error)
    assert f"there is no Python module '{mine}.deeper'" in str(error_of(f"{mine}.deeper:net"))


def test_an_attribute_that_is_not_there(mine: str) -> None:
    error = error_of(f"{mine}:make_nett")
    assert error.what == f"module '{mine}' has no 'make_nett'"
    assert error.where == str(Path.cwd() / f"{mine}.py")
    assert "make_net" in str(error.hint)


@pytest.mark.parametrize(
    ("name", "said"), [("boom", "ValueError: boom"), ("leave", "SystemExit: 3"), ("needs", "TypeError")]
)
def test_a_callable_that_fails(mine: str, name: str, said: str) -> None:
    error = error_of(f"{mine}:{name}")
    assert error.what.startswith(f"calling '{mine}:{name}' without arguments failed: {said}")
    assert error.__cause__ is not None
    if name != "needs":
        assert str(error.where).startswith(str(Path.cwd() / f"{mine}.py") + ", line ")
    assert "--debug" in str(error)


@pytest.mark.parametrize(
    ("code", "said", "line"),
    [
        ("import no_such_thing_here", "ModuleNotFoundError: No module named 'no_such_thing_here'", 1),
        ("\n1 / 0", "ZeroDivisionError: division by zero", 2),
        ("def (", "SyntaxError", 1),
    ],
)
def test_a_module_that_fails_to_import(mine: str, code: str, said: str, line: int) -> None:
    Path(f"{mine}_bad.py").write_text(code)
    error = error_of(f"{mine}_bad:net")
    assert error.what.startswith(f"importing '{mine}_bad' failed: {said}")
    assert error.where == f"{Path.cwd() / f'{mine}_bad.py'}, line {line}"


def test_callables_of_another_kind(mine: str) -> None:
    error = error_of(f"{mine}:number")
    assert error.what == f"'{mine}:number' returned a int, not a torch.nn.Module"
    error = error_of(f"{mine}:ready")
    assert error.what == f"'{mine}:ready' is a model already, not a callable that returns a model"
    assert "wrap it in a function" in str(error)
    assert "is a str, not a callable" in error_of(f"{mine}:__name__").what


def test_a_callable_has_no_named_weights(mine: str) -> None:
    error = error_of(f"{mine}:Net", weights="default")
    assert error.what == f"{mine}:Net has no published weights 'default'"
    assert error.hint == "none, or a file"


# Paths and records.


def test_artefacts_are_told_apart_and_left_to_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("built", SMALL, "empty"):
        Path(name).mkdir()
    for name in ("built", SMALL):
        (tmp_path / name / "plan.json").touch()
    assert sources.is_artefact("built")
    assert sources.is_artefact(f"./{SMALL}")
    assert not sources.is_artefact(SMALL)
    assert not sources.is_artefact("empty")
    assert not sources.is_artefact("absent")
    assert error_of("built").what == "'built' is an artefact, and an original model is needed here"
    error = error_of("empty")
    assert error.what == "the directory 'empty' has no plan.json, so it is no artefact"
    assert error.where == str(tmp_path / "empty")
    assert "secateur compile -o" in str(error)
    assert "'./absent' is no artefact directory" in str(error_of("./absent"))


@pytest.mark.parametrize(
    ("model", "what", "hint"),
    [
        ("w.pth", "a file of weights does not say what model they belong to", "give the file as --weights FILE"),
        ("./nets/my.py:make", "a model of your own is given as `module.path:callable`", "nets.my:make"),
        ("net.py:make", "a model of your own is given as", "net:make"),
        ("net.py", "a model of your own is given as", "net:CALLABLE"),
    ],
)
def test_paths_that_are_no_models(model: str, what: str, hint: str) -> None:
    error = error_of(model)
    assert what in error.what
    assert hint in str(error.hint)


@pytest.mark.parametrize("spec", [{}, {"kind": "example"}, {"kind": "x", "model": "m", "weights": "none", "seed": "?"}])
def test_a_record_that_cannot_be_read(spec: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match=r"cannot read the record of the model: .*\n  try: compile the model again"):
        rebuild(spec)


def test_a_record_of_an_unknown_kind() -> None:
    with pytest.raises(SourceError, match="is of an unknown kind, 'dream'"):
        rebuild({"kind": "dream", "model": "m", "weights": "none", "seed": 0})


def test_seeding_puts_the_generator_back_when_building_fails(mine: str) -> None:
    before = torch.get_rng_state()
    error_of(f"{mine}:boom")
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(resolve(f"{mine}:Net").module, nn.Module)
