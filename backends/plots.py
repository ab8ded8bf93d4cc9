"""Line charts as SVG, written by hand: panels side by side with axes, ticks, a line per series, and one legend.

A series has the same colour in every panel. Muted series are grey, lie below the others, and share a line of the
legend. Hovering over a line in a browser names it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito, Color Universal Design, 2008, but for yellow and black; series beyond them are dashed."""
DASHES: Final = ("", "6 3", "2 2")
GREY: Final = "#c4c4c4"

_WIDTH, _HEIGHT = 430, 320
"""Of the area that a panel's lines lie in, in pixels."""
_LEFT, _TOP, _BOTTOM, _RIGHT = 64, 44, 52, 20
_LEGEND: Final = 240
_LINE: Final = 18
"""Height of a line of the legend."""
_LONGEST: Final = 32
"""Characters of a name that the legend has room for."""


@dataclass(frozen=True)
class Series:
    """One line."""

    name: str
    points: tuple[tuple[float, float], ...]
    """(x, y) in the order in which they are joined; may be empty."""
    muted: bool = False
    """Grey, and without a place of its own in the legend."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    label: str
    """Of the y axis."""
    series: tuple[Series, ...]
    reference: float | None = None
    """A y that a dashed line marks: the dense model's."""


def chart(title: str, label: str, panels: Sequence[Panel]) -> str:
    """Return a picture.

    Args:
        title: Above everything.
        label: Of every x axis.
        panels: From left to right, with the same series in the same order; the first one's make the legend.
    """
    step = _LEFT + _WIDTH + _RIGHT
    entries = list(_legend(panels[0].series, step * len(panels) + 8)) if panels else []
    width = step * len(panels) + _LEGEND
    height = _TOP + max(_HEIGHT + _BOTTOM, _LINE * (len(entries) + 1))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for place, panel in enumerate(panels):
        lines += [f'<g transform="translate({step * place + _LEFT} {_TOP})">', *_panel(panel, label), "</g>"]
    return "\n".join([*lines, *entries, "</svg>", ""])


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten) that cover a range, about so many."""
    span = high - low if high > low else max(abs(high), 1.0)
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{step * number:.12g}") for number in range(first, max(last, first + 1) + 1)]


def _panel(panel: Panel, label: str) -> Iterator[str]:
    points = [point for series in panel.series for point in series.points]
    ys = [y for _, y in points] + ([panel.reference] if panel.reference is not None else [])
    across = ticks(min((x for x, _ in points), default=0.0), max((x for x, _ in points), default=1.0))
    up = ticks(min(ys, default=0.0), max(ys, default=1.0))

    def x_of(x: float) -> float:
        return _WIDTH * (x - across[0]) / (across[-1] - across[0])

    def y_of(y: float) -> float:
        return _HEIGHT * (1 - (y - up[0]) / (up[-1] - up[0]))

    for y in up:
        at = y_of(y)
        yield f'<path d="M0 {at:.1f}H{_WIDTH}" stroke="#e8e8e8"/>'
        yield f'<text x="-8" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>'
    for x in across:
        at = x_of(x)
        yield f'<path d="M{at:.1f} {_HEIGHT}v5" stroke="#333"/>'
        yield f'<text x="{at:.1f}" y="{_HEIGHT + 20}" text-anchor="middle">{x:g}</text>'
    yield f'<path d="M0 0V{_HEIGHT}H{_WIDTH}" fill="none" stroke="#333"/>'
    yield f'<text x="{_WIDTH / 2:.0f}" y="{_HEIGHT + 42}" text-anchor="middle">{escape(label)}</text>'
    turned = f"translate(-48 {_HEIGHT / 2:.0f}) rotate(-90)"
    yield f'<text transform="{turned}" text-anchor="middle">{escape(panel.label)}</text>'
    if panel.reference is not None:
        yield f'<path d="M0 {y_of(panel.reference):.1f}H{_WIDTH}" stroke="#333" stroke-dasharray="1 3"/>'
    for series, style in sorted(_styled(panel.series), key=lambda pair: not pair[0].muted):
        places = [(x_of(x), y_of(y)) for x, y in series.points]
        if not places:
            continue
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        yield f"<g {style}><title>{escape(series.name)}</title>"
        yield f'<path d="M{path}" fill="none"/>'
        if not series.muted:
            yield "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" stroke="none"/>' for x, y in places)
        yield "</g>"


def _styled(series: Sequence[Series]) -> Iterator[tuple[Series, str]]:
    """Yield each series with its attributes: the first six in solid colours, the next in the same ones dashed."""
    number = 0
    for one in series:
        if one.muted:
            yield one, f'stroke="{GREY}"'
            continue
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        number += 1
        yield (
            one,
            f'stroke="{colour}" fill="{colour}" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else ""),
        )


def _legend(series: Sequence[Series], left: int) -> Iterator[str]:
    entries = [(one.name, style) for one, style in _styled(series) if not one.muted]
    muted = sum(one.muted for one in series)
    if muted:
        entries.append((f"{muted} more", f'stroke="{GREY}"'))
    for place, (name, style) in enumerate(entries):
        y = _TOP + 8 + _LINE * place
        shown = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
        yield f'<path d="M{left} {y}h26" {style}/>'
        yield f'<text x="{left + 34}" y="{y + 4}">{escape(shown)}</text>'
