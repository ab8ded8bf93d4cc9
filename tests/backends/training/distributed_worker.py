"""Run by ``torchrun`` in test_distributed.py: trains a network without batch norm on its share of every batch."""

import sys
from pathlib import Path

import torch
from torch import nn

from secateur.backends import weights_file
from secateur.backends.training.loop import fit, leave, make_fabric
from secateur.backends.training.recipe import Recipe
from support.training import data


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def main() -> None:
    recipe = Recipe(epochs=2, batch_size=8, lr=0.05)
    module = network()
    fabric = make_fabric(recipe, accelerator="cpu")
    history = fit(module, data(), recipe, fabric=fabric)
    state = {**module.state_dict(), "top1": torch.tensor([f["top1"] for f in history.epochs])}
    weights_file.save(state, Path(sys.argv[1]) / f"{fabric.global_rank}.safetensors")
    leave()


if __name__ == "__main__":
    main()
