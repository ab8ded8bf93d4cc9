"""What pruning and int8 gain where models are deployed: latency against eager torch, engine by engine, and file sizes.

    python benchmarks/deploy.py                                        # torch, ONNX Runtime and OpenVINO
    python benchmarks/deploy.py --engines inductor                     # adds torch.compile, which takes much longer
    python benchmarks/deploy.py --only resnet50 --engines onnx --threads 1 --resume

Each model runs in a process of its own (deploy_worker.py). Writes results/deploy.json and results/deploy.md; settings
(model, engine, threads) that are not run again keep their results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from common import RESULTS, Json, describe, header, portable, provenance, single_threaded, table, write_results
from deploy_worker import BASE, PAIRS, PRUNED_STATIC, QUANTIZE, STATIC

NAME = "deploy"
MODELS = "resnet50 mobilenet_v2 mobilenet_v3_large efficientnet_b0 densenet121 shufflenet_v2_x1_0 convnext_tiny".split()
ENGINES = ("torch", "inductor", "onnx", "openvino")
CANDIDATES = ("original", "folded", "int8", STATIC, "pruned", "pruned int8", PRUNED_STATIC)
WORKER = Path(__file__).with_name(f"{NAME}_worker.py")
SPEEDUPS = {"resnet50": 11.5, "mobilenet_v2": 8.5}
SIZES = {"resnet50": 7.5}
REAL = ("folded", "pruned")
NOISY = 0.3
"""Quartiles further apart than this part of the median say that the machine was busy with something else."""
BUSY = 0.05
"""Share of the processor's time that other processes may take: torch's threads wait for one another, and one that has
to wait for its turn holds up all of them, so that whatever is compared with torch looks better than it is."""
NOT_MEASURED = "not measured"
Key = tuple[str, str, int]

LEGEND = """\
Batch 1, 224 x 224, random weights (see README.md: speed depends on shapes, not on values). All times of a line come
from the same rounds, in which every candidate ran once, in a random order; `torch eager`, the model as it is, is one of
them. Cells: milliseconds (median), and how many times as fast as torch eager (median over rounds of the ratio within
a round).

- *original*: the model as it is, by that engine. *folded*: `eliminate-identity,fold-constants,fold-bn`.
- *int8*: folded, then `{QUANTIZE}`. *pruned*: `{prune}`, then folded.
- *quantize_static*: ONNX Runtime's own tool on the folded or the pruned network's ONNX file, after quant_pre_process,
  on the same calibration inputs: QDQ, uint8 activations, int8 weights per channel.
- *int8 : folded*, *int8 : quantize_static* and the like: time over time within a round: median, and quartiles in
  brackets. Below 1, secateur's int8 is faster. *Slower* means that the lower quartile is above 1, that is, slower in
  three rounds of four; *undecided*, that 1 is between quartiles that are far apart.
- torch computes integers in float32 (a simulation), which is no way to deploy them, and is not judged."""


@dataclass(frozen=True)
class Check:
    """One claim."""

    claim: str
    holds: bool | None
    """``None`` where nothing was measured, or nothing that would tell."""
    found: str

    def __str__(self) -> str:
        """Return a line of Markdown."""
        answer = {None: "undecided", True: "yes", False: "NO"}[self.holds]
        return f"- **{answer}**: {self.claim} ({self.found})"


def run_one(name: str, keys: Sequence[Key], options: argparse.Namespace) -> tuple[Json, list[Json], str]:
    """Run the worker for one model; return what it found, and why it failed if it did."""
    command = [sys.executable, str(WORKER), name, "--repeats", str(options.repeats), "--macs", str(options.macs)]
    command += ["--round-to", str(options.round_to), "--min-seconds", str(options.min_seconds)]
    for _, engine, threads in keys:
        command += ["--setting", f"{engine}:{threads}"]
    network: Json = {}
    timings: list[Json] = []
    stage = "start"
    with (
        tempfile.TemporaryFile("w+") as errors,  # a pipe that nobody reads meanwhile might fill up
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line) if line.startswith("{") else {}
            network = said.get("network", network)
            if "timing" in said:
                timings.append({**said["timing"], **provenance()})
                progress(f"  {name}, {timing_title(said['timing'])}: {said['timing']['seconds']:.0f} s")
            if "stage" in said:
                stage = said["stage"]
                progress(f"  {name}: {stage}")
        process.wait()
        errors.seek(0)
        problem = errors.read().strip().splitlines()[-1:]
    failed = "" if process.returncode == 0 else " ".join([f"{stage}: ended with {process.returncode}", *problem])[:500]
    return {**network, **provenance()} if network else {}, timings, portable(failed)


def environment() -> dict[str, str]:
    """Return the worker's environment: no library decides on threads by itself, torch.set_num_threads does."""
    kept = single_threaded()
    del kept["OMP_NUM_THREADS"]
    return kept


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def key_of(timing: Json) -> Key:
    return timing["model"], timing["engine"], timing["threads"]


def timing_title(timing: Json) -> str:
    return f"{timing['engine']}, {timing['threads']} thread{'s' * (timing['threads'] > 1)}"


# -- the claims


def checks(networks: Mapping[str, Json], timings: Sequence[Json]) -> list[Check]:
    """Return what is claimed, and whether it holds."""
    return [
        *(c for model, least in SPEEDUPS.items() for c in speedup_checks(model, least, timings)),
        never_slower("secateur's int8 is never slower than quantize_static's", timings, (STATIC, PRUNED_STATIC)),
        *(size_check(model, least, networks.get(model)) for model, least in SIZES.items()),
        never_slower(
            "int8 is not slower than fp32 on the same engine, or it is known which operations are to blame",
            timings,
            REAL,
        ),
    ]


def speedup_checks(model: str, least: float, timings: Sequence[Json]) -> list[Check]:
    """Compare the fastest engine's pruned int8 with torch eager, for every number of threads."""
    mine = [t for t in timings if t["model"] == model and "pruned int8" in t["speedup"]]
    claim = f"{model}, pruned and int8, is at least {least:g} times as fast as torch eager"
    found: list[Check] = []
    for threads in sorted({t["threads"] for t in mine}):
        same = [t for t in mine if t["threads"] == threads]
        best = max(same, key=lambda t: t["speedup"]["pruned int8"][1])
        low, median, high = best["speedup"]["pruned int8"]
        text = f"{median:.1f} times, quartiles {low:.1f} to {high:.1f}, by {best['engine']}"
        noisy = best["others_share"] > BUSY or (is_noisy((low, median, high)) and low < least <= high)
        holds = None if noisy else median >= least
        text += f", but {100 * best['others_share']:.0f} % of the processor was taken by others" * noisy
        found.append(Check(f"{claim}, {threads} thread{'s' * (threads > 1)}", holds, text))
    return found or [Check(claim, None, NOT_MEASURED)]


def never_slower(claim: str, timings: Sequence[Json], others: Iterable[str]) -> Check:
    """Look at all paired ratios to these candidates; what is slower counts unless something is known to be to blame."""
    names = [f"{a} : {b}" for a, b in PAIRS if b in others]
    found = [(t, n, t["paired"][n]) for t in timings if t["engine"] != "torch" for n in names if n in t["paired"]]
    slower = [(t, n, q) for t, n, q in found if q[0] > 1]
    unclear = [(t, n, q) for t, n, q in found if q[0] <= 1 < q[2] and is_noisy(q)]
    if not found:
        return Check(claim, None, NOT_MEASURED)
    worst = max(found, key=lambda f: f[2][1])
    texts = [f"{len(slower)} of {len(found)} are slower; the slowest takes {quartile_text(worst[2])} of the time"]
    texts += [f"too noisy to tell: {len(unclear)}"] if unclear else []
    unknown = [(t, n, q) for t, n, q in slower if n not in t.get("blame", {})]
    texts += [f"{t['model']}, {timing_title(t)}, {n} {quartile_text(q)}" for t, n, q in unknown]
    return Check(claim, False if unknown else None if unclear else True, "; ".join(texts))


def blamed(timings: Sequence[Json]) -> list[str]:
    """Return where int8 is slower than float32, and which operations are to blame."""
    return [
        f"- {t['model']}, {timing_title(t)}, {pair} {quartile_text(t['paired'][pair])}: {why}"
        for t in timings
        for pair, why in t.get("blame", {}).items()
    ]


def is_noisy(quartiles: Sequence[float]) -> bool:
    low, median, high = quartiles
    return high - low > NOISY * median


def size_check(model: str, least: float, network: Json | None) -> Check:
    claim = f"{model}: the pruned int8 file is less than 1/{least:g} of the original's fp32 weights"
    if network is None:
        return Check(claim, None, NOT_MEASURED)
    times = network["weights_bytes"] / network["file_bytes"]["pruned int8"]
    return Check(claim, times > least, f"1/{times:.2f}")


def quartile_text(quartiles: Sequence[float]) -> str:
    low, median, high = quartiles
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def ops_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {op}" for op, number in counts.items()) or "none"


# -- the tables


def report(head: Json, networks: Mapping[str, Json], timings: Sequence[Json], failures: Mapping[str, str]) -> list[str]:
    """Return deploy.md."""
    lines = ["# Deployment: pruned and int8, against eager torch", "", *describe(head), ""]
    lines += [*map(str, checks(networks, timings)), ""]
    busy = [t for t in timings if t["others_share"] > BUSY]
    if busy:
        most = max(busy, key=lambda t: t["others_share"])
        lines += [
            f"In {len(busy)} of {len(timings)} settings other processes took more than {100 * BUSY:.0f} % of the "
            f"processor, {100 * most['others_share']:.0f} % in the worst: repeat them on an idle machine.",
            "",
        ]
    commits = sorted({f"{t['commit']} ({t['date'][:10]})" for t in timings})
    if len(commits) > 1:
        lines += [f"Records come from several commits: {', '.join(commits)}.", ""]
    if failures:
        lines += ["## What failed", "", *(f"- {model}: {reason}" for model, reason in failures.items()), ""]
    prunes = sorted({network["prune"] for network in networks.values()})
    lines += ["## Latency", "", LEGEND.format(prune=" or ".join(prunes), QUANTIZE=QUANTIZE), ""]
    columns = ("model", "engine", "threads", BASE, *CANDIDATES)
    lines += [*table(columns, map(latency_row, timings), left=2), "", "## Time over time", ""]
    judged = [t for t in timings if t["engine"] != "torch" and t["paired"]]
    columns = ("model", "engine", "threads", *(f"{a} : {b}" for a, b in PAIRS))
    lines += [*table(columns, map(paired_row, judged), left=2), ""]
    if found := blamed(timings):
        lines += ["## Where int8 is slower than float32, and what is to blame", "", *found, ""]
    lines += ["## Files", ""]
    lines += ["Bytes of model.onnx, MB, and the original's fp32 weights over them (*1/n*).", ""]
    columns = ("model", "fp32 weights MB", "MACs kept %", "weights kept %", *CANDIDATES)
    lines += [*table(columns, map(size_row, networks.values())), "", "## What ONNX Runtime computes in float", ""]
    lines += ["Operators of the graphs as ONNX Runtime runs them (all optimisations) that are not integer ones.", ""]
    columns = ("model", "int8", STATIC, "pruned int8", PRUNED_STATIC)
    rows = [[m, *(ops_text(n["float_ops"][c]) for c in columns[1:])] for m, n in networks.items()]
    lines += table(columns, rows, left=5)
    refused = [
        f"- {t['model']}, {timing_title(t)}: {n}: {why}" for t in timings for n, why in sorted(t["refused"].items())
    ]
    if refused:
        lines += ["", "## What did not run", "", *refused]
    far = [(max(t["disagreement"][n] for n in real(t)), t) for t in timings if real(t)]
    if far:
        error, worst = max(far, key=lambda f: f[0])
        lines += ["", f"Largest relative error of an engine's fp32 outputs: {error:.1e} ({worst['model']}, "]
        lines[-1] += f"{timing_title(worst)})."
    return lines


def real(timing: Json) -> list[str]:
    """Return the candidates without integers."""
    return [name for name in ("original", "folded", "pruned") if name in timing["disagreement"]]


def latency_row(timing: Json) -> list[str]:
    cells = [timing["model"], timing["engine"], str(timing["threads"]), f"{timing['p50_ms'][BASE]:.2f}"]
    for name in CANDIDATES:
        known = name in timing["speedup"]
        cells.append(f"{timing['p50_ms'][name]:.2f} ({timing['speedup'][name][1]:.1f}x)" if known else "-")
    return cells


def paired_row(timing: Json) -> list[str]:
    ratios = [timing["paired"].get(f"{a} : {b}") for a, b in PAIRS]
    cells = ["-" if q is None else quartile_text(q) + (" slower" if q[0] > 1 else "") for q in ratios]
    return [timing["model"], timing["engine"], str(timing["threads"]), *cells]


def size_row(network: Json) -> list[str]:
    weights = network["weights_bytes"]
    sizes = [network["file_bytes"].get(name) for name in CANDIDATES]
    cells = ["-" if size is None else f"{size / 1e6:.2f} (1/{weights / size:.2f})" for size in sizes]
    kept = [f"{100 * network[k]:.1f}" for k in ("macs_kept", "params_kept")]
    return [network["model"], f"{weights / 1e6:.2f}", *kept, *cells]


def read_records(folder: Path) -> tuple[dict[str, Json], dict[Key, Json]]:
    """Return what was found before: networks by model, timings by setting."""
    path = folder / f"{NAME}.json"
    if not path.exists():
        return {}, {}
    read = json.loads(path.read_text(encoding="utf-8"))
    return {n["model"]: n for n in read["networks"]}, {key_of(t): t for t in read["timings"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="models by name, with * and ?")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["torch", "onnx", "openvino"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--resume", action="store_true", help="run only settings that are not on record")
    parser.add_argument("--repeats", type=int, default=60, help="rounds per setting, at least")
    parser.add_argument("--min-seconds", type=float, default=3.0, help="of the rounds of a setting, at least")
    parser.add_argument("--macs", type=float, default=0.5, help="fraction of the MACs that pruning keeps")
    parser.add_argument("--round-to", type=int, default=16, help="pruned widths are multiples of this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args()
    head = header(max(options.threads), "onnx", "onnxruntime", "openvino") | {"round_to": options.round_to}
    networks, timings = read_records(options.out)
    names = [n for n in MODELS if not options.only or any(fnmatch(n, pattern) for pattern in options.only)]
    failures: dict[str, str] = {}
    begin = time.perf_counter()
    for number, name in enumerate(names, 1):
        wanted = [(name, engine, threads) for engine in options.engines for threads in options.threads]
        todo = [key for key in wanted if not (options.resume and key in timings)]
        if not todo:
            continue
        progress(f"[{number}/{len(names)}] {name}")
        network, found, failed = run_one(name, todo, options)
        networks |= {name: network} if network else {}
        timings |= {key_of(t): t for t in found}
        if failed:
            failures[name] = failed
            progress(f"  FAILED {failed}")
        head["wall_minutes"] = round((time.perf_counter() - begin) / 60, 1)
        save(options.out, head, networks, timings, failures)
    verdict = checks(networks, list(timings.values()))
    print("\n".join(map(str, verdict)))
    return int(bool(failures) or not all(check.holds for check in verdict))


def save(
    folder: Path, head: Json, networks: Mapping[str, Json], timings: Mapping[Key, Json], failures: Mapping[str, str]
) -> None:
    """Write both files, models and engines in the order of the tables."""
    ordered = sorted(
        timings.values(), key=lambda t: (MODELS.index(t["model"]), ENGINES.index(t["engine"]), t["threads"])
    )
    models = {name: networks[name] for name in MODELS if name in networks}
    data = {**head, "networks": list(models.values()), "timings": ordered, "failures": dict(failures)}
    write_results(folder, NAME, data, report(head, models, ordered, failures))


if __name__ == "__main__":
    sys.exit(main())
