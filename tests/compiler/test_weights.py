"""Weights files: what is read, what is refused, and how a mismatch is told."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.compiler import vision, weights
from secateur.compiler.errors import SourceError


def net(features: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, features, 1), nn.BatchNorm2d(features))


def save(content: object, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def error_of(path: Path, module: nn.Module | None = None) -> SourceError:
    with pytest.raises(SourceError) as caught:
        weights.load_weights(module or net(), path)
    assert caught.value.where == str(path)
    assert caught.value.hint
    return caught.value


def assert_loads(path: Path, source: nn.Module, target: nn.Module) -> None:
    weights.load_weights(target, path)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in target.state_dict().items())


class Payload:
    """A class that only this test knows."""


class Shell:
    """Runs a command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return vars(os)["system"], (self.command,)


@pytest.mark.parametrize("suffix", weights.SUFFIXES)
def test_every_kind_of_file_loads(tmp_path: Path, suffix: str) -> None:
    source, path = net(), tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(source.state_dict(), path)
    else:
        save(source.state_dict(), path)
    assert_loads(path, source, net())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state": state},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {**state, "epoch": 3},
    ],
)
def test_wrappers_are_opened(tmp_path: Path, wrap: Any) -> None:
    source = net()
    assert_loads(save(wrap(source.state_dict()), tmp_path / "w.pth"), source, net())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_common_prefixes_are_stripped(tmp_path: Path, prefix: str) -> None:
    source = net()
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    assert_loads(save(state, tmp_path / "w.pth"), source, net())


def test_a_data_parallel_model_loads_with_its_format_versions(tmp_path: Path) -> None:
    source = net()
    assert_loads(save(nn.DataParallel(source).state_dict(), tmp_path / "w.pth"), source, net())


def test_a_prefix_that_is_the_models_own_stays(tmp_path: Path) -> None:
    source = nn.Module()
    source.add_module("module", net())
    target = nn.Module()
    target.add_module("module", net())
    assert_loads(save(source.state_dict(), tmp_path / "w.pth"), source, target)


def test_a_prefix_that_not_all_names_share_is_not_stripped(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in net().state_dict().items()} | {"extra": torch.ones(1)}
    error = error_of(save(state, tmp_path / "w.pth"))
    assert "7 not in the model: module.0.weight, module.0.bias, " in str(error)


@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_batch_counters_do_not_matter(tmp_path: Path, kind: str) -> None:
    source = net()
    state = source.state_dict()
    if kind == "missing":
        del state["1.num_batches_tracked"]
    else:
        state["7.num_batches_tracked"] = torch.tensor(3)
    assert_loads(save(state, tmp_path / "w.pth"), source, net())


def test_tied_tensors_may_be_stored_once(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        module[1].weight = module[0].weight
        return module

    source = tied()
    state = dict(source.state_dict())
    del state["1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    assert_loads(tmp_path / "w.safetensors", source, tied())


def test_modules_with_format_versions_load_from_files_without_and_from_old_ones(tmp_path: Path) -> None:
    source = vision.build_model("mnasnet0_5")  # refuses a state_dict without a version
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert_loads(tmp_path / "w.safetensors", source, vision.build_model("mnasnet0_5"))

    block = vision.import_torchvision().models.vision_transformer.MLPBlock
    source = block(4, 8, 0.0)
    names = {"0.weight": "linear_1.weight", "0.bias": "linear_1.bias", "3.weight": "linear_2.weight"}
    old = OrderedDict((names.get(name, "linear_2.bias"), tensor) for name, tensor in source.state_dict().items())
    assert_loads(save(old, tmp_path / "old.pth"), source, block(4, 8, 0.0))


def test_mismatches_are_counted_and_listed(tmp_path: Path) -> None:
    def tower(layers: int, width: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))

    state = tower(8, 2).state_dict() | {f"x{i}": torch.ones(1) for i in range(2)}
    state["0.weight"] = torch.ones(2, 5)
    message = str(error_of(save(state, tmp_path / "w.pth"), tower(15, 2)))
    assert message.splitlines()[:4] == [
        "the weights do not fit the model:",
        "    7 missing in the file: 8.weight, 9.weight, 10.weight, 11.weight, 12.weight and 2 more",
        "    2 not in the model: x0, x1",
        "    1 of another shape: 0.weight (file 2x5, model 2x2)",
    ]
    assert "--weights none" in message


def test_a_scalar_of_another_shape_is_spelled_out(tmp_path: Path) -> None:
    state = {**net().state_dict(), "0.bias": torch.tensor(1.0)}
    assert "1 of another shape: 0.bias (file scalar, model 3)" in str(error_of(save(state, tmp_path / "w.pth")))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run_it(tmp_path: Path, zipped: bool) -> None:
    witness = tmp_path / "witness"
    content = {**net().state_dict(), "bad": Shell(f"touch {witness}")}
    path = save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    error = error_of(path)
    wanted = f"{os.name}.system"  # the module behind os: posix or nt
    assert error.what == f"refused to read the weights: the file is a pickle that wants to run code, `{wanted}`"
    assert "safetensors.torch.save_file" in str(error)
    assert not witness.exists()


def test_pickles_of_classes_and_of_whole_models_are_refused(tmp_path: Path) -> None:
    error = error_of(save({"w": torch.ones(1), "x": Payload()}, tmp_path / "w.pt"))
    assert f"`{Payload.__module__}.Payload`" in error.what
    error = error_of(save(net(), tmp_path / "w.th"))
    assert "`torch.nn.modules." in error.what


def test_torchscript_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise RuntimeError("Cannot use ``weights_only=True`` with TorchScript archives passed to ``torch.load``")

    monkeypatch.setattr(torch, "load", load)
    (tmp_path / "w.pt").touch()
    assert "TorchScript archive, which carries code" in error_of(tmp_path / "w.pt").what


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello world" * 20, b"<!DOCTYPE html><html>", bytes(range(256)) * 9])
def test_junk_is_unreadable(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    error = error_of(path)
    assert error.what.startswith("cannot read the weights: ")
    assert "damaged" in str(error)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_short_is_unreadable(tmp_path: Path, zipped: bool) -> None:
    path = save(net(500).state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert error_of(path).what.startswith("cannot read the weights: ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "args": [1]}, "a mapping with the keys epoch, args"),
        ({}, "an empty mapping"),
        ([torch.ones(1)], "an object of type list"),
        (torch.ones(1), "an object of type Tensor"),
        ({0: torch.ones(1)}, "a mapping with the keys 0"),
    ],
)
def test_a_file_without_a_state_dict(tmp_path: Path, content: object, said: str) -> None:
    error = error_of(save(content, tmp_path / "w.pth"))
    assert error.what == f"the file holds {said}, and no tensors by name"
    assert "save `model.state_dict()` itself" in str(error)


def test_an_empty_safetensors_file(tmp_path: Path) -> None:
    save_file({}, tmp_path / "w.safetensors")
    assert "an empty mapping" in error_of(tmp_path / "w.safetensors").what


def test_missing_files(tmp_path: Path) -> None:
    assert error_of(tmp_path / "w.pth").what == "there is no such weights file"
    with pytest.raises(
        SourceError, match=r"x\.pth: there is no such weights file\n  at: .*\n  try: give a file: \.saf"
    ):
        weights.find_file(str(tmp_path / "x.pth"))
    with pytest.raises(SourceError, match="is a directory, not a weights file"):
        weights.find_file(str(tmp_path))
    with pytest.raises(SourceError, match="cannot read the weights"):
        weights.file_sha256(tmp_path)


def test_a_suffix_that_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "w.bin").touch()
    with pytest.raises(SourceError, match=r"cannot tell what kind of weights 'w\.bin' holds"):
        weights.find_file(str(tmp_path / "w.bin"))


def test_is_weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("none", "here"):
        Path(name).touch()
    files = ["a.pth", "A.SAFETENSORS", "a.pth.tar", "./x", "dir/x", "here"]
    assert [weights.is_weights_file(text) for text in files] == [True] * len(files)
    assert not any(weights.is_weights_file(text) for text in ["none", "default", "IMAGENET1K_V1", "A.B_V1"])


def test_weights_that_the_module_itself_rejects(tmp_path: Path) -> None:
    class Picky(nn.Linear):
        def _load_from_state_dict(self, *_: Any, **__: Any) -> None:
            raise ValueError("not today")

    state: dict[str, Tensor] = nn.Linear(2, 2).state_dict()
    assert "the weights do not load: not today" in str(error_of(save(state, tmp_path / "w.pth"), Picky(2, 2)))
