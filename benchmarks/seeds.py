"""The papers' experiments on CIFAR-10 as JPEG files, and their results in tables.

    python benchmarks/seeds.py --jobs 12 --seeds 3
    python benchmarks/seeds.py --only 'hard-resnet32*,soft-resnet32*' --jobs 2 --times 0.1

Needs the data folder (--data). Recipes are reduced (RECIPES below); --times makes all of them longer or shorter, and
what stands behind ``--`` goes to ``secateur experiment``. Experiments that begin with the same training share it. Runs
are kept in --work and continue there; --minutes ends what has not ended by then. Writes results/seeds.json and
results/seeds.md; experiments that are not run again keep their results.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from threading import Lock
from typing import Any

from common import RESULTS, ROOT, header, write_results
from int8_accuracy import ARCHIVES, unpack
from seeds_report import checks, report

NAME = "seeds"
EXPERIMENTS = (
    "hard-vgg16",
    "soft-vgg16",
    "hard-resnet32-including",
    "hard-resnet32-avoiding",
    "soft-resnet32-avoiding",
    "soft-resnet32-including",
    "slimming-vgg19",
    "slimming-resnet164",
    "slimming-densenet40",
)
"""What is run by default: the tables that the seeds left to be filled in."""
FAST = ("--precision", "bf16-mixed", "--channels-last", "--warmup", "0.5", "--clip", "2")
LATER = "--lr 0.01 --schedule cosine"
"""Few epochs at the papers' constant 0.001 move little."""
RECIPES: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("slimming-vgg19", 0.075, ("--batch-size", "128", *FAST)),  # 12 epochs a stage
    ("slimming-*", 0.044, ("--batch-size", "256", *FAST)),  # 7 epochs a stage
    ("soft-*", 0.08, ("--batch-size", "256", "--least-epochs", "24", *FAST, "--later", LATER)),  # twice 24 epochs
    ("*", 0.08, ("--batch-size", "256", "--least-epochs", "6", *FAST, "--later", LATER)),  # 24 epochs, then 6
)
"""Pattern, share of the paper's epochs, and other numbers; the first that matches is taken."""


@dataclass(frozen=True)
class Options:
    """How experiments are run."""

    images: Path
    work: Path
    times: float
    more: tuple[str, ...]
    until: float


def recipe_of(name: str, options: Options) -> list[str]:
    """Return the options of an experiment."""
    scale, words = next((scale, words) for pattern, scale, words in RECIPES if fnmatch(name, pattern))
    return ["--scale", f"{scale * options.times:.4g}", *words, *options.more]


def lines_of(names: Iterable[str], seeds: int) -> list[tuple[int, list[str]]]:
    """Return seeds and names of experiments that begin with the same training: the first one trains for all."""
    from secateur.backends.training.experiments import EXPERIMENTS as KNOWN

    found: dict[tuple[int, str], list[str]] = {}
    for seed in range(seeds):
        for name in names:
            found.setdefault((seed, f"{KNOWN[name].model} {KNOWN[name].stages[0]}"), []).append(name)
    return [(seed, line) for (seed, _), line in found.items()]


def run(name: str, seed: int, leader: str | None, options: Options) -> dict[str, Any] | None:
    """Run one experiment; what is there of it comes back, even if it did not end."""
    folder = options.work / f"{name}-{seed}"
    if leader is not None:
        share_first_stage(options.work / f"{leader}-{seed}", folder)
    command = [sys.executable, "-m", "secateur", "experiment", name, "--data", str(options.images), "--seed", str(seed)]
    command += [*recipe_of(name, options), "-o", str(folder)]
    with (options.work / f"{name}-{seed}.log").open("a") as log:
        try:
            limit = max(1.0, options.until - time.monotonic())
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=log, timeout=limit)
        except subprocess.TimeoutExpired:
            print(f"{name}, seed {seed}: out of time", file=sys.stderr, flush=True)
    results = folder / "results.json"
    if not results.exists():
        return None
    record = json.loads(results.read_text(encoding="utf-8"))
    record["asked"].pop("data")
    return record


def share_first_stage(source: Path, target: Path) -> None:
    """Copy the first training of another experiment, if that has ended and ours has not begun."""
    stage = source / "dense"
    if (stage / "report.json").exists() and not (target / "dense").exists():
        target.mkdir(parents=True, exist_ok=True)
        shutil.copytree(stage, target / "dense.part", dirs_exist_ok=True)
        (target / "dense.part").rename(target / "dense")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(EXPERIMENTS), metavar="LIST", help="patterns of experiments")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="of every experiment")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="experiments at the same time")
    parser.add_argument("--times", type=float, default=1.0, metavar="X", help="as many epochs as the reduced recipes")
    parser.add_argument("--minutes", type=float, default=1e6, metavar="N", help="end after so many")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="archives of images")
    parser.add_argument("--work", type=Path, default=ROOT / "build/seeds", help="where runs are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    parser.add_argument("more", nargs="*", help="behind --: for `secateur experiment`")
    given = parser.parse_args()
    begin = time.monotonic()
    from secateur.backends.training.experiments import EXPERIMENTS as KNOWN

    patterns = given.only.split(",")
    names = [name for name in KNOWN if any(fnmatch(name, pattern) for pattern in patterns)]
    if not names or not all((given.data / name).exists() for name in ARCHIVES):
        print(f"needs in --data {', '.join(ARCHIVES)}, and a pattern that matches", file=sys.stderr)
        return 2
    head, path = header(int(os.environ.get("OMP_NUM_THREADS", 2))), given.out / f"{NAME}.json"
    records: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["records"] if path.exists() else {}
    lock, missing = Lock(), list[str]()

    def note(name: str, seed: int, record: dict[str, Any] | None) -> None:
        with lock:
            if record is None or not record["finished"]:
                missing.append(f"{name}, seed {seed}")
            if record is not None:
                records[f"{name} {seed}"] = {"experiment": name, **record, "run": head}
                write_results(given.out, NAME, {"records": records}, report(records))

    with tempfile.TemporaryDirectory() as folder:
        images = given.work / "images"  # a name that stays the same, so that runs continue
        images.parent.mkdir(parents=True, exist_ok=True)
        images.unlink(missing_ok=True)
        images.symlink_to(unpack(given.data, Path(folder)))
        options = Options(images, given.work, given.times, tuple(given.more), begin + 60 * given.minutes)
        with ThreadPoolExecutor(given.jobs) as leaders, ThreadPoolExecutor(given.jobs) as others:

            def one(name: str, seed: int, leader: str | None) -> None:
                print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
                note(name, seed, run(name, seed, leader, options))

            def line(seed: int, members: list[str]) -> None:
                first, *rest = members
                one(first, seed, None)
                for done in [others.submit(one, name, seed, first) for name in rest]:
                    done.result()

            for done in [leaders.submit(line, *entry) for entry in lines_of(names, given.seeds)]:
                done.result()
        images.unlink()
    verdict = checks(records)
    print("\n".join([*map(str, verdict), *(f"did not end: {name}" for name in missing)]))
    return int(bool(missing) or not all(check.holds for check in verdict))


if __name__ == "__main__":
    sys.exit(main())
