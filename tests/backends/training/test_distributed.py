"""Two processes on the CPU, started as users start them, end with the weights of one."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from secateur.backends import weights_file

HERE = Path(__file__).parent


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    folders = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": folders}
    worker = str(HERE / "distributed_worker.py")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for start, name in (([], "one"), (launcher, "two")):
        command = [sys.executable, *start, worker, str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    alone = weights_file.read(tmp_path / "one" / "0.safetensors")
    first, second = (weights_file.read(tmp_path / "two" / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Sums over a batch are taken in another order: float32 differs in its last places.
    assert all(torch.allclose(first[name], alone[name], rtol=1e-4, atol=1e-5) for name in alone)
