"""The figures of a run as files: JSON lines while it runs, and a table and curves at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from ..plots import Panel, Series, chart

Figures = dict[str, float]
_ACCURACY: Final = ("top1", "top5")


def line(figures: Figures) -> str:
    """Return an epoch as a line of text for a person."""
    shown = [f"loss {figures['loss']:.4f}", f"top-1 {figures['top1']:.2f} %"]
    shown += [f"top-5 {figures['top5']:.2f} %"] if "top5" in figures else []
    known = {"epoch", "loss", "top1", "top5", "lr", "seconds", "waited"}
    shown += [f"{name} {value:.4g}" for name, value in figures.items() if name not in known]
    return f"epoch {figures['epoch']:.0f}: {', '.join(shown)}, lr {figures['lr']:.2g}, {figures['seconds']:.1f} s"


def jsonl(epochs: Sequence[Figures]) -> bytes:
    """Return one JSON object per epoch and line."""
    return "".join(json.dumps(figures) + "\n" for figures in epochs).encode()


def csv(epochs: Sequence[Figures]) -> bytes:
    """Return a table with a row per epoch; what an epoch did not measure stays empty."""
    columns = list(dict.fromkeys(name for figures in epochs for name in figures))
    rows = [",".join(columns)]
    rows += [",".join(f"{figures[name]:.10g}" if name in figures else "" for name in columns) for figures in epochs]
    return ("\n".join(rows) + "\n").encode()


def curves(title: str, epochs: Sequence[Figures], before: Figures) -> bytes:
    """Return loss and accuracy over epochs as a picture; a dotted line marks the top-1 before the first epoch."""

    def series(name: str, label: str) -> Series:
        return Series(label, tuple((f["epoch"], f[name]) for f in epochs if name in f))

    loss = Panel("training loss", (series("loss", "loss"),))
    marked = [f for f in epochs if "top1" in f]
    reference = before.get("top1") if marked else None
    accuracy = Panel("top-1, %", (series("top1", "top-1"),), reference=reference)
    return chart(title, "epoch", [loss, accuracy]).encode()
