"""A model of each of timm's architecture families: captured, pruned to half of its MACs, proven, trained, reloaded.

    pip install timm
    python benchmarks/coverage_timm.py                     # everything
    python benchmarks/coverage_timm.py --only 'swin*'      # some; the results of the others stay
    python benchmarks/coverage_timm.py --resume            # what an interrupted run left, and what failed

Each model runs in a process of its own. Writes results/coverage_timm.json and results/coverage_timm.md.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import (
    RESULTS,
    Json,
    describe,
    header,
    percent,
    portable,
    provenance,
    randomise,
    settle,
    single_threaded,
    table,
    write_results,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

TITLE = "Coverage: a model of each family of timm at half the MACs"
MODELS = """
    bat_resnext26ts beit_base_patch16_224 botnet26t_256 cait_xxs24_224 caformer_s18 coat_tiny coatnet_nano_rw_224
    convformer_s18 convit_tiny convmixer_768_32 convnext_atto convnextv2_atto cpubone_nano crossvit_tiny_240
    cs3darknet_s cspresnet50 cspnext_tiny davit_tiny deit_tiny_patch16_224 deit3_small_patch16_224 densenet121 dla34
    dpn68 ecaresnet26t edgenext_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvim_m1
    efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 fbnetc_100
    focalnet_tiny_lrf gcresnet33ts gcvit_xxtiny gernet_s ghostnet_050 ghostnetv3_100 gmlp_ti16_224 halonet26t
    hardcorenas_a hgnet_tiny hiera_tiny_224 hrnet_w18_small iformer_h inception_next_atto inception_resnet_v2
    inception_v3 inception_v4 lambda_resnet26t lcnet_035 lcnetv2_small legacy_seresnet18 legacy_xception levit_128
    lowformer_b0 mambaout_femto maxvit_pico_rw_256 maxvit_tiny_tf_224 mixer_s16_224 mixnet_s mnasnet_050
    mobilenet_edgetpu_v2_xs mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium
    mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small nf_regnet_b0 nfnet_l0 pit_xs_224
    poolformer_s12 pvt_v2_b0 rdnet_tiny regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9
    res2net50_26w_4s resmlp_12_224 resnest14d resnet18 resnetv2_18 resnetv2_50x1_bit rexnet_150 sam2_hiera_tiny
    selecsls42 sequencer2d_s shvit_s1 skresnet18 spnasnet_100 starnet_s050 swiftformer_xs swin_s3_tiny_224
    swinv2_cr_tiny_224 swinv2_tiny_window8_256 tf_efficientnet_b0 tf_efficientnetv2_b0 tf_mixnet_s tinynet_e
    tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny vit_relpos_small_patch16_224
    vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 vovnet39a xception41 xcit_nano_12_p8_224
""".split()
"""Small ones; the largest families (gemma4, deepseek, sam's) have none that a small machine proves in a minute."""
SIZES = (64, 96, None)
"""Of images, the first that the model takes; ``None`` is its own."""
PRUNE = "prune{macs=0.5}"
FIRST = "fold-constants"
"""In front, where weights are computed from others (weight standardisation): the budget cannot be met otherwise."""

LEGEND = f"""\
Weights are random, all that initialisation leaves constant included; `{PRUNE}` on images of the size in the table.
Where weights are computed from others, `{FIRST}` stands in front (marked *: they are no parameters any more).

- *proof error*: max |compact - masked original| / max |masked original| in float64; at most 1e-9 is demanded.
- *trains alike*: what was captured, whole, gives the model's own outputs and running statistics in training mode from
  the same random numbers, to 1e-4; *evaluation only*: the capture says that it holds one of two modes.
- *other sizes*: what was captured gives the model's own outputs for images twice as wide; *fixed*: the capture says
  that it is for one size; -: the model takes no others; ?: was not asked when this was measured.
- *reloads*: model.py and model.safetensors give the compact module's outputs, bit for bit."""


def input_of(model: Any) -> torch.Tensor:
    """Return random images, two, as small as the model takes them."""
    import torch

    for size in SIZES:
        shape = model.default_cfg["input_size"] if size is None else (3, size, size)
        x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                copy.deepcopy(model).eval()(x)
        except Exception:  # it takes other sizes only
            if size is None:
                raise
        else:
            return x
    raise AssertionError


def apart_in_training(model: nn.Module, module: nn.Module, x: torch.Tensor) -> float:
    """Return the largest relative difference of outputs and buffers after a step in training mode."""
    import torch

    found: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    for one in (copy.deepcopy(model), copy.deepcopy(module)):
        torch.manual_seed(1)
        with torch.no_grad():
            out: Any = one.train()(x)
        found.append((answer_of(out), dict(one.named_buffers())))
    (a, mine), (b, theirs) = found
    pairs = [(a, b), *((mine[n], theirs[n]) for n in theirs if n in mine and mine[n].is_floating_point())]
    return max(float((p - q).abs().max() / q.abs().max().clamp_min(1e-3)) for p, q in pairs if p.numel())


def answer_of(out: Any) -> torch.Tensor:
    """Return the first tensor of what a model gives."""
    while not hasattr(out, "shape"):
        out = next(iter(out.values())) if isinstance(out, Mapping) else out[0]
    return out


def takes_other_sizes(model: nn.Module, module: nn.Module, x: torch.Tensor) -> bool | None:
    """Tell whether what was captured does what the model does with wider images; ``None`` if that takes none."""
    import torch

    wider = torch.cat([x[:1], x[:1].flip(3)], dim=3)
    with torch.no_grad():
        try:
            wanted = answer_of(model.eval()(wider))
        except Exception:
            return None
        try:
            found = answer_of(module.eval()(wider))
        except Exception:
            return False
    return found.shape == wanted.shape and float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a model and images."""
    timm: Any = importlib.import_module("timm")
    model = timm.create_model(name, pretrained=False, num_classes=10).eval()
    return model, input_of(model)


def checked(name: str, make: Callable[[str], tuple[nn.Module, torch.Tensor]]) -> Json:
    """Run everything for one model."""
    import torch

    from secateur.backends.artefact import load
    from secateur.backends.compile import compile as compile_model
    from secateur.compiler.capture import trace
    from secateur.compiler.errors import BudgetError
    from secateur.compiler.vision import import_torchvision

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    import_torchvision()
    torch.manual_seed(0)
    model, x = make(name)
    model = settle(randomise(model), tuple(x.shape))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    begin = time.process_time()
    program = trace(model, x)
    traced = time.process_time() - begin
    pipeline = PRUNE
    try:
        compiled = compile_model(program, pipeline=pipeline, verify=False)
    except BudgetError:
        pipeline = f"{FIRST},{PRUNE}"
        compiled = compile_model(program, pipeline=pipeline, verify=False)
    pruned = time.process_time() - begin - traced
    compiled = compile_model(program, pipeline=pipeline)
    module = compiled.module.eval()
    with tempfile.TemporaryDirectory() as folder:
        compiled.save(Path(folder) / "net")
        with torch.no_grad():
            same = torch.equal(answer_of(load(Path(folder) / "net").eval()(x)), answer_of(module(x)))
    one_sided = any("training" in note for note in program.notes)
    return {
        "model": name,
        "input": list(x.shape[1:]),
        "pipeline": pipeline,
        "params": sum(p.numel() for p in model.parameters()),
        "macs": compiled.report["before"]["macs"],
        "macs_kept": compiled.report["kept"]["macs"],
        "params_kept": compiled.report["kept"]["params"],
        "proof_error": compiled.report["verification"]["error"],
        "vacuous": compiled.report["verification"]["vacuous"],
        "training": None if one_sided else apart_in_training(model, program.module, x),
        "reloads": same,
        "other_sizes": takes_other_sizes(model, program.module, x),
        "unchanged": all(torch.equal(value, before[key]) for key, value in model.state_dict().items()),
        "sized": program.sized,
        "notes": list(program.notes),
        "seconds": {"trace": round(traced, 2), "prune": round(pruned, 2)},
    }


def problems(record: Json) -> list[str]:
    """Return what is wrong."""
    if "failed" in record:
        return [record["failed"]]
    training = record["training"]
    free = record.get("other_sizes") is not False
    demands = {
        f"the proof's error is {record['proof_error']:.1e}": record["proof_error"] <= 1e-9,
        f"{percent(record['macs_kept'])} % of the MACs are kept": abs(record["macs_kept"] - 0.5) <= 0.02,
        f"it trains otherwise ({training})": training is None or training <= 1e-4,
        "the proof is of a model that ignores its input": not record["vacuous"],
        "it does not reload": record["reloads"],
        "it fails on other sizes, unsaid": free or record["sized"],
        "the model was changed": record["unchanged"],
    }
    return [text for text, good in demands.items() if not good]


def report(title: str, head: Mapping[str, Any], records: Sequence[Json]) -> list[str]:
    """Return the text beside the records."""
    good = [r for r in records if not problems(r)]
    lines = [f"# {title}", "", *describe(head), ""]
    lines += [f"**{len(good)} of {len(records)} models passed all checks.**", ""]
    if good:
        took = sorted(sum(r["seconds"].values()) for r in good)
        at = Counter(r["commit"] for r in records)
        lines += [
            f"- largest proof error {max(r['proof_error'] for r in good):.1e}",
            f"- {sum(r['training'] is not None for r in good)} train as the model does",
            f"- {sum(r.get('other_sizes') is True for r in good)} take images of other sizes, "
            f"{sum(r.get('other_sizes') is False for r in good)} no more, as the capture says",
            f"- {sum(r['pipeline'] != PRUNE for r in good)} need `{FIRST}` in front",
            f"- trace and prune together: median {took[len(took) // 2]:.2f} s, at most {took[-1]:.2f} s",
            f"- measured at commit {', '.join(f'{commit} ({count})' for commit, count in at.most_common())}",
            "",
        ]
    columns = ("model", "input", "M params", "G MACs", "params kept %", "MACs kept %", "proof error", "trains alike",
               "other sizes", "reloads", "trace s", "prune s")  # fmt: skip
    lines += [LEGEND, "", *table(columns, [row(r) for r in records])]
    failed = [f"- {r['model']}: {'; '.join(problems(r))}" for r in records if problems(r)]
    noted = [f"- {r['model']}: {note}" for r in records for note in r.get("notes", ())]
    lines += ["", "## What failed", "", *failed] if failed else []
    return [*lines, *(["", "## Notes by the capture", "", *noted] if noted else [])]


def row(record: Json) -> list[str]:
    if "failed" in record:
        return [record["model"], "FAILED", *["-"] * 10]
    return [
        record["model"] + ("*" if record["pipeline"] != PRUNE else ""),
        "x".join(map(str, record["input"][1:])),
        f"{record['params'] / 1e6:.1f}",
        f"{record['macs'] / 1e9:.3f}",
        percent(record["params_kept"]),
        percent(record["macs_kept"]),
        f"{record['proof_error']:.1e}",
        "evaluation only" if record["training"] is None else "yes" if record["training"] <= 1e-4 else "NO",
        {None: "-", True: "yes", False: "fixed", "?": "?"}[record.get("other_sizes", "?")],
        "exact" if record["reloads"] else "NO",
        *(f"{record['seconds'][stage]:.2f}" for stage in ("trace", "prune")),
    ]


def run(script: str, name: str, limit: float) -> Json:
    """Run one model in a process of its own."""
    came_from = provenance()
    command = [sys.executable, script, "--model", name]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit, env=single_threaded()
        )
    except subprocess.TimeoutExpired:
        return {"model": name, "failed": f"took longer than {limit:g} s", **came_from}
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    last = portable(" ".join(done.stderr.splitlines()[-1:]))
    return {**(found[-1] if found else {"model": name, "failed": last or "the process died"}), **came_from}


def cover(
    script: str,
    package: str,
    title: str,
    models: Sequence[str],
    make: Callable[[str], tuple[nn.Module, torch.Tensor]],
    about: str,
) -> int:
    """Do what the command line asks for, with the models of a package."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", help="run this one here, and print its record")
    parser.add_argument("--only", default="*", metavar="LIST", help="patterns, with commas between them")
    parser.add_argument("--resume", action="store_true", help="keep what passed, run what is missing or failed")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="models at a time, one thread each")
    parser.add_argument("--limit", type=float, default=600, help="seconds per model")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args()
    if options.model:
        print(json.dumps(checked(options.model, make)))
        return 0
    if importlib.util.find_spec(package) is None:
        print(f"needs {package} (pip install {package})", file=sys.stderr)
        return 2
    name = Path(script).stem
    head, path = header(1, package), options.out / f"{name}.json"
    known: list[Json] = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else []
    records = {r["model"]: r for r in known if r["model"] in models}
    names = [model for model in models if any(fnmatch(model, pattern) for pattern in options.only.split(","))]
    todo = [n for n in names if not (options.resume and n in records and not problems(records[n]))]
    with ThreadPoolExecutor(options.workers) as pool:
        futures = [pool.submit(run, script, model, options.limit) for model in todo]
        for number, future in enumerate(as_completed(futures), 1):
            record = future.result()
            records[record["model"]] = record
            print(f"[{number}/{len(todo)}] {record['model']}: {'; '.join(problems(record)) or 'fine'}", flush=True)
            ordered = sorted(records.values(), key=lambda r: r["model"])
            write_results(options.out, name, {**head, "models": ordered}, report(title, head, ordered))
    return int(any(problems(records[model]) for model in names))


if __name__ == "__main__":
    sys.exit(cover(__file__, "timm", TITLE, MODELS, build, (__doc__ or "").partition("\n")[0]))
