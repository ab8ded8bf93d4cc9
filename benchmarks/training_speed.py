"""Images per second of the training loop, and of a plain loop with a DataLoader, on the same network and images.

    python benchmarks/training_speed.py
    python benchmarks/training_speed.py --rounds 1 --images 512     # to see that it works

Random images of 32 x 32, held in memory as bytes: the plain loop reads them through torch's DataLoader with two workers
and torchvision's transforms, as most scripts do; ours makes its batches itself. Both loops take turns; a round is an
epoch. Then the batches alone, without a network, say what data loading costs. Writes results/training_speed.json and
results/training_speed.md, or with an accelerator results/training_speed_gpu.*.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import RESULTS, describe, header, table, write_results

NAME = "training_speed"
MODELS = ("cifar-resnet20", "cifar-vgg11")
BATCH = 128


def images_of(count: int) -> Any:
    """Return random images of ten classes, as the loop takes them."""
    import torch

    from secateur.backends.training.data import Data
    from secateur.backends.training.splits import InMemory
    from secateur.compiler.data.preprocess import Preprocess

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator).to(torch.uint8)
    labels = torch.arange(count) % 10
    how = Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
    split = InMemory("random", tuple(map(str, range(10))), how, pixels, labels)
    few = InMemory("random", split.classes, how, pixels[:BATCH], labels[:BATCH])
    return Data(split, few, {})


def device_name() -> str:
    """Return where both loops train: on the accelerator, if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Wait until the device has done what it was asked for."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def plain_epochs(model: Any, pixels: Any, labels: Any, epochs: int) -> Iterator[float]:
    """Yield the seconds of each epoch of a loop as people write it."""
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    change = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ]
    )

    class Images(Dataset[Any]):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> Any:
            return change(pixels[index]), labels[index]

    loader = DataLoader(
        Images(),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,  # as is common
    )
    device = device_name()
    model = model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        begin = time.perf_counter()
        for x, y in loader:
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        wait()
        yield time.perf_counter() - begin


def our_epochs(model: Any, data: Any, epochs: int) -> Iterator[float]:
    """Yield the seconds of each epoch of ours, without its evaluation: one run per epoch."""
    from secateur.backends.training.loop import fit
    from secateur.backends.training.recipe import Recipe

    for seed in range(epochs):
        begin = time.perf_counter()
        fit(model, data, Recipe(epochs=1, batch_size=BATCH), seed=seed)
        wait()
        yield time.perf_counter() - begin


def loading(data: Any) -> float:
    """Return the seconds that the batches of an epoch take by themselves."""
    import torch

    from secateur.backends.training.splits import Share

    placed = data.placed(torch.device(device_name()))
    begin = time.perf_counter()
    for _ in placed.train.training(0, BATCH, Share(), seed=0, augment="auto"):
        pass
    wait()
    return time.perf_counter() - begin


def measure(name: str, count: int, rounds: int) -> dict[str, Any]:
    """Run both loops in turn, a round to warm up first."""
    from secateur.compiler import vision, zoo

    vision.import_torchvision()
    data = images_of(count)
    plain = plain_epochs(zoo.network(name).build(), data.train.images, data.train.labels, rounds + 1)
    ours = our_epochs(zoo.network(name).build(), data, rounds + 1)
    pairs = [(next(ours), next(plain)) for _ in range(rounds + 1)][1:]
    whole = len(data.train) // BATCH * BATCH
    return {
        "model": name,
        "images": whole,
        "rounds": rounds,
        "ours": [whole / o for o, _ in pairs],
        "plain": [whole / p for _, p in pairs],
        "ratio": statistics.median(p / o for o, p in pairs),
        "loading": loading(data) / statistics.median(o for o, _ in pairs),
    }


def report(head: dict[str, Any], records: list[dict[str, Any]]) -> list[str]:
    """Return training_speed.md."""
    lines = ["# Speed of the training loop", "", *describe(head), ""]
    for record in records:
        answer = "yes" if record["ratio"] >= 1 else "NO"
        lines.append(
            f"- **{answer}**: {record['model']}: {record['ratio']:.2f} times the plain loop's images per second"
        )
        answer = "yes" if record["loading"] < 0.1 else "NO"
        lines.append(f"- **{answer}**: {record['model']}: making batches takes {record['loading']:.1%} of an epoch")
    columns = ("network", "images", "ours, images/s", "plain loop, images/s", "ratio", "making batches")
    rows = [
        [
            r["model"],
            f"{r['images']:,}",
            f"{statistics.median(r['ours']):,.0f}",
            f"{statistics.median(r['plain']):,.0f}",
            f"{r['ratio']:.2f}",
            f"{r['loading']:.1%}",
        ]
        for r in records
    ]
    text = "The plain loop: DataLoader with two workers, torchvision's transforms. Medians over rounds, in turns."
    return [*lines, "", text, "", *table(columns, rows)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=5120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args()
    head, records = header(2), list[dict[str, Any]]()
    for model in MODELS:
        print(model, file=sys.stderr, flush=True)
        records.append(measure(model, options.images, options.rounds))
        name = f"{NAME}_gpu" if "accelerator" in head["machine"] else NAME
        write_results(options.out, name, {**head, "records": records}, report(head, records))
    return int(any(r["ratio"] < 1 for r in records))


if __name__ == "__main__":
    sys.exit(main())
