"""Charts: plain shapes in the page's colors, without scripts, links or styles."""

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.report.charts import adoption_colors, draw_adoption, draw_states, draw_versions
from auditor.report.model import HistorySection, ModuleAdoption, ModuleShares, PastRun, VersionShare, count_by_state
from auditor.runs.manifest import DeviceCounts
from tests.report.fleets import EVIL

ALLOWED_ATTRIBUTES = {"class", "d", "transform", "text-anchor", "font-size", "font-weight", "opacity", "fill-opacity",
        "stroke-width", "stroke-dasharray", "x1", "x2", "y1", "y2", "x", "y", "width", "height"}  # fmt: skip


def module(*versions: tuple[str, int], newest: str | None = None, more: int = 0) -> ModuleShares:
    devices = sum(count for _, count in versions) + more
    shares = tuple(
        VersionShare(
            "eu", "k1", "ble", text, count, count / devices,
            order="unordered" if newest is None else "newest" if text == newest else "older",
        )
        for text, count in versions
    )  # fmt: skip
    on_newest = None if newest is None else sum(v.share for v in shares if v.order == "newest")
    return ModuleShares("eu", "k1", "ble", devices, len(shares) + more, shares, newest, on_newest)


def elements(svg: str) -> list[ET.Element]:
    """Return the elements of a chart; all have a shape, a position and a color class only."""
    root = ET.fromstring(svg)
    for each in root.iter():
        assert each.tag in {"svg", "g", "path", "rect", "line", "text"}
        assert each is root or set(each.attrib) <= ALLOWED_ATTRIBUTES, each.attrib
    return list(root.iter())


def texts(svg: str) -> list[str]:
    return [each.text or "" for each in elements(svg) if each.tag == "text"]


def test_bar_is_as_long_as_its_share() -> None:
    svg = draw_versions(module(("1.2", 75), ("1.1", 20), newest="1.2", more=5))
    widths = {
        each.get("class"): float(re.findall(r"h(\d+(?:\.\d+)?)", each.get("d", ""))[0]) / 320
        for each in elements(svg)
        if each.tag == "path"
    }
    assert widths == {"fill-track": 1.0, "fill-accent": 0.75, "fill-plain": 0.2, "fill-rest": 0.05}
    assert texts(svg) == ["1.2", "1.1", "5 other versions", "75  ·  75%", "20  ·  20%", "5  ·  5%"]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=8, unique=True))
def test_any_version_is_bounded_text(names: list[str]) -> None:
    svg = draw_versions(module(*((name, 1) for name in (*names, EVIL))))
    found = texts(svg)
    assert len(found) == 2 * (len(names) + 1)
    assert found[len(names)] == EVIL[:23] + "…"
    assert all(len(text) <= 24 and text.isprintable() for text in found[: len(names) + 1])


def test_states_are_segments_of_one_bar_and_small_ones_are_visible() -> None:
    counts = DeviceCounts(ok=999_990, failed=10)
    segments = {
        each.get("class"): each.get("d", "")
        for each in elements(draw_states(count_by_state(counts, 0)))
        if each.tag == "path"
    }
    assert set(segments) == {"fill-ok", "fill-failed"}
    assert float(re.findall(r"h(\d+(?:\.\d+)?)", segments["fill-failed"])[0]) > 3
    assert [each.tag for each in elements(draw_states(count_by_state(DeviceCounts(), 0)))] == ["svg"]


def past(number: int, label: str | None = None) -> PastRun:
    return PastRun(f"run{number}", f"2026-11-{number + 1:02}T02:00:00.000Z", label)


@pytest.mark.parametrize("runs", [1, 2, 30])
def test_each_run_is_a_column_and_runs_with_a_label_are_marked(runs: int) -> None:
    shares = tuple(None if n == 1 else (0.25, 0.75) for n in range(runs))
    adoption = ModuleAdoption(module(("2", 1), ("1", 3), newest="2"), ("2", "1"), shares)
    history = HistorySection(tuple(past(n, "partial" if n == 0 else None) for n in range(runs)), (adoption,), ())
    classes = [each.get("class") for each in elements(draw_adoption(adoption, history)) if each.tag == "path"]
    columns = runs - (runs > 1)
    assert (classes.count("fill-accent"), classes.count("fill-c3"), classes.count("fill-warn")) == (columns, columns, 1)
    assert texts(draw_adoption(adoption, history))[3:] == ["1 Nov", f"{runs} Nov"][: 1 + (runs > 1)]


def test_color_of_the_newest_version_is_unique() -> None:
    ordered = ModuleAdoption(module(("2", 1), newest="2"), ("2", "1", "0", None), ())
    unordered = ModuleAdoption(module(("2", 1)), ("2", "1", "0", None), ())
    assert adoption_colors(ordered)[0] == "accent"
    assert "accent" not in (*adoption_colors(ordered)[1:], *adoption_colors(unordered))
    assert len(set(adoption_colors(unordered))) == 4
    assert adoption_colors(ordered)[-1] == adoption_colors(unordered)[-1] == "rest"


def test_rolled_back_version_does_not_have_the_color_of_the_newest_in_use() -> None:
    back = ModuleAdoption(module(("1.1", 1), ("1.0", 1), newest="1.1"), ("2.0", "1.1", "1.0", None), ())
    assert adoption_colors(back) == ("c1", "accent", "c3", "rest")
    five = ModuleAdoption(module(("3", 1), newest="3"), ("7", "6", "5", "4", "3"), ())
    assert adoption_colors(five) == ("c1", "c2", "c3", "c4", "accent")


def test_same_chart_has_the_same_bytes() -> None:
    assert draw_versions(module(("1", 1))) == draw_versions(module(("1", 1)))
