"""An artefact is written whole or not at all."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.backends import artefact, weights_file
from secateur.compiler.errors import ArtefactError
from secateur.compiler.plan import Plan, PrunedGroup

MODEL = """
import torch
from torch import nn

__all__ = ["Net", "load"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x)
"""


def files(tag: bytes = b"{}") -> dict[str, artefact.Content]:
    state = {f"fc.{name}": tensor for name, tensor in nn.Linear(3, 2).state_dict().items()}
    return {
        "model.py": MODEL.encode(),
        "model.safetensors": lambda path: weights_file.save(state, path),
        "report.json": tag,
    }


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def fail(_: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(_: Path) -> None:
    raise KeyboardInterrupt


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leftover(directory: Path, kind: str) -> Path:
    host = socket.gethostname().replace(".", "_")
    path = directory.parent / f".{directory.name}.secateur-{kind}.{host}.{dead_process()}.0"
    path.mkdir()
    (path / "report.json").write_bytes(b'{"left": 1}')
    return path


def test_write_and_load(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    artefact.check_writable(out, force=False)
    artefact.write(out, files(), force=False)
    assert names(out) == ["model.py", "model.safetensors", "report.json"]
    assert names(out.parent) == ["out"]
    model = artefact.load(out)
    assert not model.training
    assert model(torch.rand(4, 3)).shape == (4, 2)
    assert type(artefact.load(out)) is not type(model)
    assert names(out) == ["model.py", "model.safetensors", "report.json"]
    assert artefact.read_report(out) == {}


def test_an_existing_directory_is_refused_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    artefact.write(out, files(b'{"n": 1}'), force=False)
    for attempt in (artefact.check_writable, lambda d, force: artefact.write(d, files(), force=force)):
        with pytest.raises(ArtefactError, match="exists already"):
            attempt(out, force=False)
    artefact.write(out, {"report.json": b'{"n": 2}'}, force=True)
    assert artefact.read_report(out) == {"n": 2}
    assert names(out) == ["report.json"]
    assert names(tmp_path) == ["out"]


def test_force_replaces_nothing_but_artefacts(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtefactError, match="not replaced"):
        artefact.write(tmp_path / "home", files(), force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtefactError, match="not a directory"):
        artefact.write(tmp_path / "file", files(), force=True)
    assert names(tmp_path) == ["file", "home"]


@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path: Path, existing: bool) -> None:
    out = tmp_path / "new" / "out"
    if existing:
        artefact.write(out, files(b'{"n": 1}'), force=False)
    with pytest.raises(ArtefactError, match="No space left on device") as caught:
        artefact.write(out, {**files(), "plan.json": fail}, force=True)
    assert str(out) in str(caught.value)
    if existing:
        assert artefact.read_report(out) == {"n": 1}
        assert names(out.parent) == ["out"]
    else:
        assert names(tmp_path) == []


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        artefact.write(tmp_path / "out", {**files(), "plan.json": interrupt}, force=False)
    assert names(tmp_path) == []


def test_a_failed_swap_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    artefact.write(out, files(b'{"n": 1}'), force=False)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".secateur-new." in self.name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ArtefactError, match="Permission denied"):
        artefact.write(out, files(), force=True)
    assert artefact.read_report(out) == {"n": 1}
    assert names(tmp_path) == ["out"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ArtefactError, match="no permission"):
        artefact.check_writable(tmp_path / "a" / "out", force=False)
    tmp_path.chmod(0o700)


def test_leftovers_of_dead_runs_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    artefact.write(out, files(), force=False)
    leftover(out, "new")
    leftover(out, "old")
    alive = tmp_path / f".out.secateur-new.{socket.gethostname().replace('.', '_')}.{os.getpid()}.0"
    alive.mkdir()
    other = tmp_path / ".other.secateur-new.host.1.0"
    other.mkdir()
    artefact.write(out, files(b'{"n": 3}'), force=True)
    assert names(tmp_path) == sorted([alive.name, other.name, "out"])


def test_an_artefact_lost_between_two_renames_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    leftover(out, "old")
    with pytest.raises(ArtefactError, match="exists already"):
        artefact.write(out, files(), force=False)
    assert artefact.read_report(out) == {"left": 1}


def test_a_killed_run_leaves_no_half_artefact(tmp_path: Path) -> None:
    script = (
        "import os, signal\nfrom pathlib import Path\nfrom secateur.backends import artefact\n"
        "def kill(path): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"artefact.write(Path({str(tmp_path / 'out')!r}), {{'model.py': b'x', 'report.json': kill}}, force=False)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode < 0
    assert not (tmp_path / "out").exists()
    assert len(names(tmp_path)) == 1
    artefact.write(tmp_path / "out", files(), force=False)
    assert names(tmp_path) == ["out"]


def test_plan_and_report_come_back(tmp_path: Path) -> None:
    plan = Plan({"conv.weight": {0: [0, 2], 1: [[1], [0]]}}, {}, (PrunedGroup("g", ("conv",), 4, 2),))
    import json

    content = json.dumps(plan.to_json()).encode()
    artefact.write(tmp_path / "out", {"plan.json": content, "report.json": b'{"macs": 1}'}, force=False)
    assert artefact.read_plan(tmp_path / "out") == plan
    assert artefact.read_report(tmp_path / "out") == {"macs": 1}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"format": 2}', b'{"format": 1, "kept": 3}', b"\xff"])
def test_a_damaged_plan_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    artefact.write(tmp_path / "out", {"plan.json": content}, force=False)
    with pytest.raises(ArtefactError, match=r"plan\.json"):
        artefact.read_plan(tmp_path / "out")


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such artefact"):
        artefact.load(tmp_path / "absent")
    out = tmp_path / "out"
    artefact.write(out, files(), force=False)
    (out / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ArtefactError, match="safetensors"):
        artefact.load(out)
    weights_file.save({"fc.weight": torch.zeros(2, 3)}, out / "model.safetensors")
    with pytest.raises(ArtefactError, match=r"do not fit the model: .*fc\.bias"):
        artefact.load(out)
    (out / "model.safetensors").unlink()
    with pytest.raises(ArtefactError, match="cannot read the weights"):
        artefact.load(out)
    (out / "model.py").write_text("class Net(")
    with pytest.raises(ArtefactError, match=r"model\.py cannot be run: SyntaxError"):
        artefact.load(out)
    (out / "model.py").unlink()
    with pytest.raises(ArtefactError, match=r"has no model\.py"):
        artefact.load(out)
