"""Line charts: well-formed, complete, to scale."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.backends.plots import COLOURS, GREY, Panel, Series, chart, ticks

thousandths = st.integers(-(10**6), 10**6).map(lambda number: number / 1000)


@given(thousandths, thousandths)
def test_ticks_cover_the_range_evenly_with_round_steps(one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = ticks(low, high)
    assert 2 <= len(found) <= 10
    step = (found[-1] - found[0]) / (len(found) - 1)
    assert found[0] <= low + 1e-6 * step
    assert found[-1] >= high - 1e-6 * step
    assert float(f"{step:.0e}"[0]) in (1, 2, 5)
    assert all(b - a == pytest.approx(step, rel=1e-6) for a, b in pairwise(found))


def drawn(*panels: Panel) -> ElementTree.Element:
    return ElementTree.fromstring(chart("title & more", "x", panels))


def named(root: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if element.tag.rpartition("}")[2] == tag]


def lines(root: ElementTree.Element) -> dict[str, ElementTree.Element]:
    """Series name -> its group of elements."""
    return {str(group[0].text): group for group in named(root, "g") if len(group) and group[0].tag.endswith("title")}


def test_points_stand_where_the_ticks_say() -> None:
    root = drawn(Panel("y", (Series("a", ((0.0, 0.0), (0.5, 5.0), (1.0, 10.0))),)))
    path = named(lines(root)["a"], "path")[0].get("d")
    assert path == "M0.0 320.0L215.0 160.0L430.0 0.0"
    texts = {str(t.text): t for t in named(root, "text")}
    assert float(texts["0.4"].get("x", "")) == pytest.approx(0.4 * 430)
    assert float(texts["10"].get("y", "")) == pytest.approx(4)


def test_names_are_escaped_and_shortened_in_the_legend_alone() -> None:
    name = "a<b>&" + "c" * 60
    root = drawn(Panel("y < 1", (Series(name, ((0.0, 1.0), (1.0, 2.0))),)))
    texts = [text.text for text in named(root, "text")]
    assert texts[0] == "title & more"
    assert "y < 1" in texts
    assert list(lines(root)) == [name]
    assert name[:31] + "…" in texts


def test_a_series_looks_the_same_everywhere_and_no_two_alike() -> None:
    series = tuple(Series(str(number), ((0.0, number), (1.0, number))) for number in range(12))
    root = drawn(Panel("one", series), Panel("two", series))
    styles: dict[str, set[tuple[str | None, str | None]]] = {}
    for group in (g for g in named(root, "g") if len(g) and g[0].tag.endswith("title")):
        styles.setdefault(str(group[0].text), set()).add((group.get("stroke"), group.get("stroke-dasharray")))
    assert all(len(found) == 1 for found in styles.values())
    assert len(set[tuple[str | None, str | None]]().union(*styles.values())) == 12
    assert {stroke for found in styles.values() for stroke, _ in found} == set(COLOURS)


def test_muted_series_are_grey_below_the_others_and_counted() -> None:
    series = [Series("a", ((0.0, 1.0), (1.0, 2.0))), *(Series(n, ((0.0, 0.0),), muted=True) for n in "bcd")]
    root = drawn(Panel("y", tuple(series)))
    found = lines(root)
    assert list(found) == ["b", "c", "d", "a"]
    assert found["b"].get("stroke") == GREY
    assert "3 more" in [text.text for text in named(root, "text")]


@pytest.mark.parametrize("points", [(), ((0.5, 3.0),), ((0.5, 0.0), (0.5, 0.0))])
def test_few_points_or_none_make_a_picture_too(points: tuple[tuple[float, float], ...]) -> None:
    text = chart("t", "x", [Panel("y", (Series("a", points),), 1.0)])
    ElementTree.fromstring(text)
    assert not re.search("nan|inf", text)
    ElementTree.fromstring(chart("t", "x", [Panel("y", ())]))
