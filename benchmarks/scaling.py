"""How time grows with the size of the network: generated networks of 1,000 to 10,000 nodes.

    python benchmarks/scaling.py [--nodes 1000,2000,5000,10000] [--repeats 5]

Writes results/scaling.json and results/scaling.md.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from common import RESULTS, Json, describe, fit_slope, header, portable, randomise, table, write_results
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.compiler import cost
from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.passes.prune.prune import Prune

WIDTH = 32
STAGE = 12
"""Blocks between two changes of the trunk, in networks with stages."""
EXAMPLE = torch.zeros(1, 3, 16, 16)
STAGES = ("trace", "analyse", "prune")
LIMIT_EXPONENT, LIMIT_SECONDS = 1.15, 10.0
"""Demanded: an exponent of about 1, and an analysis of the largest network in less than 10 s."""

LEGEND = """\
Networks of random blocks, 32 channels wide: residual (two convolutions and an addition), cat (two branches joined,
then mixed), grouped (a grouped and a depthwise convolution between pointwise ones) and split (half of the channels
convolved, then channel shuffle, as in ShuffleNet). *stages*: every 12 blocks a convolution begins a new trunk. *trunk*:
no such thing, and no split blocks, so that one group of coupled channels spans the whole network.

CPU seconds on one thread, median of {repeats}. *prune* is `Prune(macs=0.5).run(program)`, with its own analysis. The
exponent b is that of seconds ~ nodes^b, fitted by least squares on logarithms."""


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(width, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Cat(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = conv(width, width // 2, 1), conv(width, width // 2)
        self.bn = nn.BatchNorm2d(width)
        self.mix = conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.left(x), F.relu(self.right(x))], 1)
        return x + self.mix(F.relu(self.bn(y)))


class Grouped(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand, self.bn1 = conv(width, width, 1), nn.BatchNorm2d(width)
        self.grouped, self.bn2 = conv(width, width, 3, groups=4), nn.BatchNorm2d(width)
        self.depthwise, self.reduce = conv(width, width, 3, groups=width), conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.expand(x)))
        y = F.relu(self.bn2(self.grouped(y)))
        return x + self.reduce(self.depthwise(y))


class Split(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.bn = conv(width // 2, width // 2), nn.BatchNorm2d(width // 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        y = torch.cat([left, F.relu(self.bn(self.conv(right)))], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Transition(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.bn = conv(width, width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Generated(nn.Module):
    """A network of the given blocks."""

    def __init__(self, kinds: Sequence[type[nn.Module]]) -> None:
        super().__init__()
        self.stem = conv(3, WIDTH)
        self.blocks = nn.ModuleList(kind(WIDTH) for kind in kinds)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def generate(nodes: int, *, stages: bool, seed: int = 0) -> nn.Module:
    """Return a network of random blocks whose graph has ``nodes`` nodes, or a few more."""
    kinds: list[type[nn.Module]] = [Residual, Cat, Grouped, *([Split] if stages else [])]
    size = {kind: count_nodes([kind, kind]) - count_nodes([kind]) for kind in [*kinds, Transition]}
    generator = torch.Generator().manual_seed(seed)
    chosen: list[type[nn.Module]] = []
    total = count_nodes([])
    while total < nodes:
        new_trunk = stages and len(chosen) % STAGE == STAGE - 1
        kind = Transition if new_trunk else kinds[int(torch.randint(0, len(kinds), (), generator=generator))]
        chosen.append(kind)
        total += size[kind]
    return randomise(Generated(chosen)).eval()


def count_nodes(kinds: Sequence[type[nn.Module]]) -> int:
    return len(trace(Generated(kinds), EXAMPLE).graph.nodes)


def measure(model: nn.Module) -> Json:
    """Return nodes, groups, the fraction of MACs kept, and the CPU seconds of each stage."""
    gc.collect()
    clock = [time.process_time()]
    program = trace(model, EXAMPLE)
    clock.append(time.process_time())
    deps = analyze(program)
    clock.append(time.process_time())
    result = Prune(macs=0.5).run(program)
    clock.append(time.process_time())
    return {
        "nodes": len(program.graph.nodes),
        "groups": len(deps.groups),
        "macs_kept": round(cost.measure(result.program).macs / cost.measure(program).macs, 4),
        **{stage: round(clock[i + 1] - clock[i], 4) for i, stage in enumerate(STAGES)},
    }


def medians(samples: Sequence[Json]) -> Json:
    """Join the repetitions of one network."""
    return {**samples[0], **{stage: statistics.median(s[stage] for s in samples) for stage in STAGES}}


def exponents(records: Sequence[Json]) -> dict[str, float]:
    """Return the exponent of each stage."""
    return {stage: fit_slope([r["nodes"] for r in records], [r[stage] for r in records]) for stage in STAGES}


def report(head: Json, kinds: dict[str, list[Json]]) -> list[str]:
    """Return scaling.md."""
    lines = ["# Scaling: seconds against nodes", "", *describe(head), "", LEGEND.format(repeats=head["repeats"])]
    for kind, records in kinds.items():
        rows = [
            [f"{r['nodes']:,}", r["groups"], *(f"{r[s]:.3f}" for s in STAGES), f"{1e6 * r['analyse'] / r['nodes']:.0f}"]
            for r in records
        ]
        if len(records) > 1:
            rows.append(["exponent", "", *(f"{b:.2f}" for b in exponents(records).values()), ""])
        lines += [
            "",
            f"## {kind}",
            "",
            *table(("nodes", "groups", *(f"{s} s" for s in STAGES), "analyse µs/node"), rows),
        ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", default="1000,2000,5000,10000", help="sizes, separated by commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = header(1) | {"repeats": options.repeats}
    measure(generate(200, stages=True))  # the first use of everything is slow
    kinds: dict[str, list[Json]] = {}
    for kind in ("stages", "trunk"):
        models = [generate(int(nodes), stages=kind == "stages") for nodes in options.nodes.split(",")]
        # Sizes take turns, so that a while in which the machine is busy does not fall on one of them.
        rounds = [[measure(model) for model in models] for _ in range(options.repeats)]
        kinds[kind] = [medians(samples) for samples in zip(*rounds, strict=True)]
        for record in kinds[kind]:
            print(kind, "  ".join(f"{name} {value}" for name, value in record.items()), flush=True)
    slopes = {kind: exponents(records) for kind, records in kinds.items() if len(records) > 1}
    data = {**head, "networks": kinds, "exponents": slopes}
    write_results(options.out, "scaling", data, report(head, kinds))
    print(portable(str(slopes)))
    steep = [b for found in slopes.values() for b in found.values() if b > LIMIT_EXPONENT]
    slow = [r for records in kinds.values() for r in records if r["analyse"] > LIMIT_SECONDS]
    return int(bool(steep or slow))


if __name__ == "__main__":
    sys.exit(main())
