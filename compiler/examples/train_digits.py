"""Writes ``digits.npz`` (with ``--data``, which needs scikit-learn) and trains ``digits.safetensors``.

    python -m secateur.compiler.examples.train_digits [--data]

Deterministic on one machine: one thread, one seed, and the weights of the last epoch (the test images choose nothing).
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from . import accuracy
from .digits import DATA_FILE, LEVELS, WEIGHTS_FILE, build, read_data

TEST_SHARE = 0.25
SEED = 0
EPOCHS = 60
BATCH = 64
log = logging.getLogger(__name__)


def write_data() -> None:
    """Write scikit-learn's copy of the digits with a stratified split: 1,347 images to train, 450 to test."""
    # By name, because scikit-learn is no dependency: only who writes the data anew needs it.
    digits: Any = importlib.import_module("sklearn.datasets").load_digits()
    images = digits.images.astype(np.uint8)
    labels = digits.target.astype(np.uint8)
    split_in_two: Any = importlib.import_module("sklearn.model_selection").train_test_split
    split: Any = split_in_two(np.arange(len(labels)), test_size=TEST_SHARE, random_state=SEED, stratify=labels)
    is_test = np.zeros(len(labels), dtype=np.uint8)
    is_test[split[1]] = 1
    np.savez_compressed(DATA_FILE, images=images, labels=labels, is_test=is_test)
    training = images[is_test == 0] / LEVELS
    log.info("%d images, training mean %.4f, std %.4f", len(labels), training.mean(), training.std())


def augment(images: Tensor) -> Tensor:
    """Rotate, scale and shift images (N, 1, H, W) a little, each in its own way; background fills the border."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * math.radians(12)
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.12
    shift = (torch.rand(count, 2) * 2 - 1) * 0.2
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    # grid_sample pads with zeros; shifting the background to zero first keeps padded pixels background.
    background = images.min()
    return F.grid_sample(images - background, grid, align_corners=False) + background


def train() -> nn.Module:
    """Train for ``EPOCHS`` epochs with AdamW under a one-cycle schedule, and return the network."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = read_data()
    module = build()
    batches = math.ceil(len(data.train_images) / BATCH)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, epochs=EPOCHS, steps_per_epoch=batches)
    for epoch in range(EPOCHS):
        module.train()
        for index in torch.randperm(len(data.train_images)).split(BATCH):
            logits = module(augment(data.train_images[index]))
            loss = F.cross_entropy(logits, data.train_labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        log.info("epoch %d: test %.2f %%", epoch + 1, accuracy(module, data.test_images, data.test_labels))
    return module.eval()


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Train the embedded example.")
    parser.add_argument("--data", action="store_true", help="write digits.npz first, from scikit-learn")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.data:
        write_data()
    module = train()
    # Not `save_file`, which makes the file readable to its owner only.
    WEIGHTS_FILE.write_bytes(save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))
    log.info("wrote %s", WEIGHTS_FILE.name)


if __name__ == "__main__":
    main()
