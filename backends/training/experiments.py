"""The experiments of the papers that this project descends from: a table of chains of stages.

Each stage reads what an earlier one wrote, by default the one before it. ``epochs`` are the papers'; ``--scale`` makes
them fewer. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Train:
    """A stage that trains."""

    name: str
    recipe: Mapping[str, Any]
    """What differs from the default recipe."""
    method: str = ""
    of: str = ""
    """The stage whose output is trained; by default the one before."""
    scratch: bool = False
    """Draw all weights anew first."""
    same_compute: bool = False
    """Train for as many epochs more as the network lost MACs."""


@dataclass(frozen=True)
class Compile:
    """A stage that prunes."""

    name: str
    pipeline: str
    of: str = ""
    """As above."""


@dataclass(frozen=True)
class Experiment:
    """A row of the table."""

    model: str
    stages: tuple[Train | Compile, ...]
    paper: str
    """What is reported for it, in a sentence."""


_SGD: Final = {"batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "multistep"}
_SEED: Final = {**_SGD, "epochs": 300, "milestones": (100 / 300, 200 / 300)}
_RETRAIN: Final = {**_SGD, "lr": 0.001, "schedule": "constant"}
_PFEC: Final = {**_SGD, "epochs": 164, "milestones": (0.5, 0.75), "weight_decay": 1e-4}
_SFP: Final = {**_SGD, "epochs": 200, "nesterov": True, "gamma": 0.2, "milestones": (0.3, 0.6, 0.8)}
_SLIM: Final = {**_SGD, "epochs": 160, "batch_size": 64, "weight_decay": 1e-4}


def _hard(model: str, dense: Mapping[str, Any], pipeline: str, epochs: int, paper: str) -> Experiment:
    stages = (Train("dense", dense), Compile("pruned", pipeline), Train("tuned", {**_RETRAIN, "epochs": epochs}))
    return Experiment(model, stages, paper)


def _soft(depth: int, rate: int, paper: str, *, trained: bool = False) -> Experiment:
    method = f"soft{{rate={rate / 100:g}}}"
    if not trained:
        return Experiment(f"cifar-resnet{depth}", (Train("soft", _SFP, method),), paper)
    stages = (Train("dense", _SFP), Train("soft", {**_SFP, "lr": 0.01}, method))
    return Experiment(f"cifar-resnet{depth}", stages, paper)


def _slimming(model: str, s: str, ratio: str, paper: str, select: str = "") -> Experiment:
    pruning = f"prune{{criterion=bn-scale scope=global normalize=none{select} ratio={ratio}}}"
    stages = (
        Train("dense", _SLIM),
        Train("sparse", _SLIM, f"slim{{s={s}}}", of="-"),
        Compile("pruned", pruning),
        Train("tuned", _SLIM),
    )
    return Experiment(model, stages, paper)


def _resnet32(pipeline: str, paper: str) -> Experiment:
    return _hard("cifar-resnet32", _SEED, pipeline, 20, paper)


_L1: Final = "prune{criterion=l1-independent"
_FIRST: Final = "layer1.*.conv1:0.125,layer2.*.conv1:0.125,layer3.*.conv1:0.125"
_AGAIN: Final = "prune{criterion=bn-scale scope=global normalize=none ratio=0.5}"
_ALL: Final = " select=all"

EXPERIMENTS: Final[dict[str, Experiment]] = {
    "hard-vgg16": _hard("cifar-vgg16-4096", _SEED, "@pfec-vgg16-a", 20, "93.92 -> 93.93 %, -34 % MACs"),
    "soft-vgg16": Experiment(
        "cifar-vgg16-4096",
        (Train("dense", _SEED), Train("soft", {**_RETRAIN, "epochs": 50}, "soft{rate=0.125 norm=l1}")),
        "93.92 -> 93.91 %, -22 % MACs",
    ),
    "hard-resnet32-avoiding": _resnet32(f"{_L1} layers={_FIRST}}}", "93.34 % -> not reported"),
    "hard-resnet32-including": _resnet32(f"{_L1} ratio=0.125}}", "93.34 % -> not reported"),
    "soft-resnet32-avoiding": Experiment(
        "cifar-resnet32",
        (Train("dense", _SEED), Train("soft", {**_RETRAIN, "epochs": 50}, "soft{rate=0.125 shortcut=avoid}")),
        "93.34 % -> not reported",
    ),
    "soft-resnet32-including": Experiment(
        "cifar-resnet32",
        (Train("dense", _SEED), Train("soft", {**_RETRAIN, "epochs": 50}, "soft{rate=0.125}")),
        "93.34 % -> not reported",
    ),
    "pfec-vgg16": _hard("cifar-vgg16-pfec", _SEED, "@pfec-vgg16-a", 40, "93.25 -> 93.40 %, -34.2 % MACs"),
    "pfec-resnet56-a": _hard("cifar-resnet56", _PFEC, "@pfec-resnet56-a", 40, "93.04 -> 93.10 %, -10.4 % MACs"),
    "pfec-resnet56-b": _hard("cifar-resnet56", _PFEC, "@pfec-resnet56-b", 40, "93.04 -> 93.06 %, -27.6 % MACs"),
    "pfec-resnet110-a": _hard("cifar-resnet110", _PFEC, "@pfec-resnet110-a", 40, "93.53 -> 93.55 %, -15.9 % MACs"),
    "pfec-resnet110-b": _hard("cifar-resnet110", _PFEC, "@pfec-resnet110-b", 40, "93.53 -> 93.30 %, -38.6 % MACs"),
    "pfec-vgg16-iterative": Experiment(
        "cifar-vgg16-pfec",
        (
            Train("dense", _SEED),
            Compile("pruned-1", f"{_L1} layers=features.0:0.5}}"),
            Train("tuned-1", {**_RETRAIN, "epochs": 13}),
            Compile("pruned-2", f"{_L1} layers=features.24:0.5,features.27:0.5,features.30:0.5}}"),
            Train("tuned-2", {**_RETRAIN, "epochs": 13}),
            Compile("pruned-3", f"{_L1} layers=features.34:0.5,features.37:0.5,features.40:0.5}}"),
            Train("tuned-3", {**_RETRAIN, "epochs": 14}),
        ),
        "the same in three rounds; no figures",
    ),
    "scratch-vgg16": Experiment(
        "cifar-vgg16-pfec",
        (
            Train("dense", _SEED),
            Compile("pruned", "@pfec-vgg16-a"),
            Train("tuned", {**_RETRAIN, "epochs": 40}),
            Train("scratch-e", _SEED, of="pruned", scratch=True),
            Train("scratch-b", _SEED, of="pruned", scratch=True, same_compute=True),
        ),
        "PFEC's scratch: 93.12 %; Liu et al. 2019: scratch-B as good as fine-tuning or better",
    ),
    "sfp-resnet20-10": _soft(20, 10, "92.20 -> 92.24 %, -15.2 % MACs"),
    "sfp-resnet20-20": _soft(20, 20, "92.20 -> 91.20 %, -29.3 % MACs"),
    "sfp-resnet20-30": _soft(20, 30, "92.20 -> 90.83 %, -42.2 % MACs"),
    "sfp-resnet32-30": _soft(32, 30, "92.63 -> 92.08 %, -41.5 % MACs"),
    "sfp-resnet56-40": _soft(56, 40, "93.59 -> 92.26 %, -52.6 % MACs"),
    "sfp-resnet56-40-trained": _soft(56, 40, "93.59 -> 93.35 %, -52.6 % MACs", trained=True),
    "sfp-resnet110-30": _soft(110, 30, "93.68 -> 93.38 %, -40.8 % MACs"),
    "sfp-resnet110-30-trained": _soft(110, 30, "93.68 -> 93.86 %, -40.8 % MACs", trained=True),
    "slimming-vgg19": _slimming("cifar-vgg19", "1e-4", "0.7", "93.66 -> 93.80 %, -88.5 % parameters, -51 % MACs"),
    "slimming-resnet164": _slimming(
        "cifar-preresnet164", "1e-5", "0.4", "94.58 -> 94.92 %, -14.9 % parameters, -23.7 % MACs", _ALL
    ),
    "slimming-resnet164-60": _slimming(
        "cifar-preresnet164", "1e-5", "0.6", "94.58 -> 94.73 %, -35.2 % parameters, -44.9 % MACs", _ALL
    ),
    "slimming-densenet40": _slimming(
        "cifar-densenet40", "1e-5", "0.4", "93.89 -> 94.81 %, -35.7 % parameters, -28.4 % MACs", _ALL
    ),
    "slimming-densenet40-60": _slimming(
        "cifar-densenet40-24", "1e-5", "0.6", "94.11 -> 94.22 %, 0.49 M parameters (repository)", _ALL
    ),
    "slimming-vgg19-twice": Experiment(
        "cifar-vgg19",
        (
            Train("sparse-1", _SLIM, "slim{s=1e-4}"),
            Compile("pruned-1", _AGAIN),
            Train("sparse-2", _SLIM, "slim{s=1e-4}"),
            Compile("pruned-2", _AGAIN),
            Train("tuned", _SLIM),
        ),
        "two passes of half of the channels: 93.77 -> 93.89 %, -84.7 % parameters, -52.7 % MACs",
    ),
}
"""Accuracies are the papers', on uncompressed images; ``-`` as ``of`` stands for the model itself."""
