"""Charts: plain shapes in the page's colors, without scripts, links or styles."""

import re
from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.report.charts import (
    AGE_COLORS,
    COLORS,
    color_classes,
    draw_ages,
    draw_bar,
    draw_share,
    draw_sparkline,
    state_segments,
)
from auditor.report.model import AGES, count_by_state
from auditor.runs.manifest import DeviceCounts
from tests.report.fleets import EVIL

ALLOWED_ATTRIBUTES = {
    "class", "d", "x", "y", "x1", "x2", "y1", "y2", "dy", "width", "height", "viewBox", "preserveAspectRatio",
    "text-anchor", "aria-hidden", "focusable",
}  # fmt: skip


def elements(chart: str) -> list[ET.Element]:
    """Return the elements of a chart; all have a shape, a position and a class only."""
    root = ET.fromstring(f"<div>{chart}</div>")
    found = list(root.iter())[1:]
    for each in found:
        assert each.tag in {"svg", "path", "rect", "line", "text", "div"}
        assert set(each.attrib) <= ALLOWED_ATTRIBUTES, each.attrib
        assert each.tag != "svg" or each.get("aria-hidden") == "true"
    return found


def texts(chart: str) -> list[str]:
    return [each.text or "" for each in elements(chart) if each.tag == "text"]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def test_segments_are_as_long_as_their_sizes_and_small_ones_are_visible() -> None:
    widths = {e.get("class"): float(e.get("width", "")) for e in elements(draw_bar([("ok", 3), ("failed", 1)]))[1:]}
    assert widths == {"fill-ok": 75.0, "fill-failed": 25.0}
    counts = DeviceCounts(ok=999_990, failed=10)
    segments = elements(draw_bar(state_segments(count_by_state(counts, 0)), "stretch"))[1:]
    assert [each.get("class") for each in segments] == ["fill-ok", "fill-failed"]
    assert float(segments[1].get("width", "")) >= 0.3
    assert sum(float(each.get("width", "")) for each in segments) == pytest.approx(100, abs=0.2)
    assert elements(draw_bar(state_segments(count_by_state(DeviceCounts(), 0))))[1:] == []


def test_share_has_its_interval() -> None:
    track, bar, line = elements(draw_share(0.5, "n0", 0.4, 0.61))[1:]
    assert (track.get("width"), bar.get("width")) == ("100", "50")
    assert (line.get("x1"), line.get("x2")) == ("40", "61")


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=30))
def test_sparkline_has_a_point_for_each_value_and_ends_at_the_last_one(values: list[float | None]) -> None:
    chart = draw_sparkline(values, "accent", 0, 1)
    present = [value for value in values if value is not None]
    if len(present) < 2:
        assert chart == ""
        return
    _, area, line, dot = elements(chart)
    found = points(line.get("d", ""))
    assert len(found) == len(present)
    assert [y for _, y in found] == pytest.approx([25 - 22 * value for value in present], abs=0.06)
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    assert points(dot.get("d", "")) == found[-1:]
    gaps = sum(a is not None and b is None for a, b in zip(values, [*values[1:], None], strict=True))
    assert line.get("d", "").count("M") == area.get("d", "").count("Z") == gaps


def test_sparkline_of_equal_values_is_a_flat_line() -> None:
    for value in (0.0, 7.0):
        line = elements(draw_sparkline([value] * 3, "accent", filled=False))[1]
        assert len({y for _, y in points(line.get("d", ""))}) == 1


SHARES = st.lists(
    st.one_of(
        st.none(),
        st.lists(st.integers(0, 50), min_size=len(AGES), max_size=len(AGES))
        .filter(any)
        .map(lambda counts: [count / sum(counts) for count in counts]),
    ),
    min_size=1,
    max_size=30,
).filter(lambda runs: runs[-1] is not None)


@given(SHARES)
def test_areas_fill_the_chart_and_labels_do_not_overlap(runs: list[Sequence[float] | None]) -> None:
    last = runs[-1] or ()
    labels = [name if share else "" for name, share in zip(AGES, last, strict=True)]
    chart = draw_ages(runs, labels, [f"{day} Nov" for day in range(len(runs))])
    found = elements(chart)
    plot = next(each for each in found if each.get("class") == "plot")
    tops = [points(e.get("d", "")) for e in plot if str(e.get("class")).startswith("fill-")]
    assert tops, "there is an area"
    assert {y for _, y in tops[-1][: len(tops[-1]) // 2]} <= {0.0, -0.0}
    ends = next(each for each in found if each.get("class") == "ends")
    assert [each.text for each in ends] == [label for label in labels if label]
    heights = [float(str(each.get("y")).rstrip("%")) for each in ends]
    assert all(below - above >= 7.9 for below, above in pairwise(heights))
    assert all(0 <= y <= 100 for y in heights)


def test_marked_runs_have_a_line_and_names_are_text() -> None:
    runs = [[1.0, 0, 0, 0, 0], None, [0.5, 0.5, 0, 0, 0]]
    chart = draw_ages(runs, [EVIL, "<b>", "", "", ""], ["1 Nov", "2 Nov", "<i>"], marked=[1])
    marks = [each.get("d") for each in elements(chart) if each.get("class") == "mark"]
    assert marks == ["M50 0V100"]
    assert {EVIL, "<b>", "<i>"} <= set(texts(chart))


@pytest.mark.parametrize("runs", [1, 2, 3, 30])
def test_first_and_last_day_are_labelled(runs: int) -> None:
    chart = draw_ages([[1.0, 0, 0, 0, 0]] * runs, ["all", "", "", "", ""], [f"{n} Nov" for n in range(runs)])
    days = [text for text in texts(chart) if "Nov" in text]
    assert days[0] == "0 Nov"
    assert days[-1] == f"{runs - 1} Nov"
    assert len(days) <= 5


def test_runs_of_one_day_have_their_times_at_the_ends() -> None:
    starts = ["1 Dec, 02:00", "1 Dec, 08:00", "1 Dec, 14:00", "1 Dec, 18:00"]
    chart = draw_ages([[1.0, 0, 0, 0]] * 4, ["all", "", "", ""], starts)
    assert [text for text in texts(chart) if ":" in text] == ["1 Dec, 02:00", "18:00"], "two have room"


def test_each_color_has_its_classes() -> None:
    style = color_classes()
    assert len(set(COLORS)) == len(COLORS)
    assert set(AGE_COLORS) <= set(COLORS)
    assert all(f".{use}-{name} {{" in style for name in COLORS for use in ("fill", "stroke", "bg"))


def test_same_chart_has_the_same_bytes() -> None:
    assert draw_sparkline([1, 2, None, 3], "bad") == draw_sparkline([1, 2, None, 3], "bad")
