"""Pictures: plain shapes in the page's inks, with nothing in them that acts or styles itself."""

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.report.charts import adoption_inks, adoption_picture, states_picture, versions_picture
from auditor.report.model import Adoption, History, Module, Past, Version, parts_of
from auditor.runs.manifest import DeviceCounts
from tests.report.fleets import EVIL

KEPT = {"class", "d", "transform", "text-anchor", "font-size", "font-weight", "opacity", "fill-opacity",
        "stroke-width", "stroke-dasharray", "x1", "x2", "y1", "y2", "x", "y", "width", "height"}  # fmt: skip


def module(*versions: tuple[str, int], newest: str | None = None, more: int = 0) -> Module:
    devices = sum(count for _, count in versions) + more
    made = tuple(
        Version(
            text, count, count / devices, "unordered" if newest is None else "newest" if text == newest else "older"
        )
        for text, count in versions
    )
    part = None if newest is None else sum(v.share for v in made if v.order == "newest")
    return Module("eu", "k1", "ble", devices, len(made) + more, made, newest, part)


def elements(picture: str) -> list[ET.Element]:
    """The picture's elements; none has anything but a shape, a place and an ink."""
    root = ET.fromstring(picture)
    for each in root.iter():
        assert each.tag in {"svg", "g", "path", "rect", "line", "text"}
        assert each is root or set(each.attrib) <= KEPT, each.attrib
    return list(root.iter())


def texts(picture: str) -> list[str]:
    return [each.text or "" for each in elements(picture) if each.tag == "text"]


def test_a_bar_is_as_long_as_its_share() -> None:
    picture = versions_picture(module(("1.2", 75), ("1.1", 20), newest="1.2", more=5))
    wide = {
        each.get("class"): float(re.findall(r"h(\d+(?:\.\d+)?)", each.get("d", ""))[0]) / 320
        for each in elements(picture)
        if each.tag == "path"
    }
    assert wide == {"fill-track": 1.0, "fill-accent": 0.75, "fill-plain": 0.2, "fill-rest": 0.05}
    assert texts(picture) == ["1.2", "1.1", "5 other versions", "75  ·  75%", "20  ·  20%", "5  ·  5%"]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=8, unique=True))
def test_whatever_a_version_is_called_is_text(names: list[str]) -> None:
    picture = versions_picture(module(*((name, 1) for name in (*names, EVIL))))
    found = texts(picture)
    assert len(found) == 2 * (len(names) + 1)
    assert found[len(names)] == EVIL[:23] + "…"
    assert all(len(text) <= 24 and text.isprintable() for text in found[: len(names) + 1])


def test_states_are_parts_of_one_bar_and_a_small_one_is_seen() -> None:
    counts = DeviceCounts(ok=999_990, failed=10)
    parts = {
        each.get("class"): each.get("d", "")
        for each in elements(states_picture(parts_of(counts, 0)))
        if each.tag == "path"
    }
    assert set(parts) == {"fill-ok", "fill-failed"}
    assert float(re.findall(r"h(\d+(?:\.\d+)?)", parts["fill-failed"])[0]) > 3
    assert [each.tag for each in elements(states_picture(parts_of(DeviceCounts(), 0)))] == ["svg"]


def past(number: int, label: str | None = None) -> Past:
    return Past(f"run{number}", f"2026-11-{number + 1:02}T02:00:00.000Z", DeviceCounts(), label)


@pytest.mark.parametrize("runs", [1, 2, 30])
def test_a_run_is_a_column_and_one_to_be_doubted_is_marked(runs: int) -> None:
    shares = tuple(None if n == 1 else (0.25, 0.75) for n in range(runs))
    adoption = Adoption(module(("2", 1), ("1", 3), newest="2"), ("2", "1"), shares)
    history = History(tuple(past(n, "partial" if n == 0 else None) for n in range(runs)), (adoption,), ())
    drawn = [each.get("class") for each in elements(adoption_picture(adoption, history)) if each.tag == "path"]
    columns = runs - (runs > 1)
    assert (drawn.count("fill-accent"), drawn.count("fill-c3"), drawn.count("fill-warn")) == (columns, columns, 1)
    assert texts(adoption_picture(adoption, history))[3:] == ["1 Nov", f"{runs} Nov"][: 1 + (runs > 1)]


def test_the_ink_of_the_newest_is_of_no_other_version() -> None:
    known = Adoption(module(("2", 1), newest="2"), ("2", "1", "0", None), ())
    unknown = Adoption(module(("2", 1)), ("2", "1", "0", None), ())
    assert adoption_inks(known)[0] == "accent"
    assert "accent" not in (*adoption_inks(known)[1:], *adoption_inks(unknown))
    assert len(set(adoption_inks(unknown))) == 4
    assert adoption_inks(known)[-1] == adoption_inks(unknown)[-1] == "rest"


def test_a_version_that_was_rolled_back_has_not_the_ink_of_the_newest_that_is_alive() -> None:
    back = Adoption(module(("1.1", 1), ("1.0", 1), newest="1.1"), ("2.0", "1.1", "1.0", None), ())
    assert adoption_inks(back) == ("c1", "accent", "c3", "rest")
    five = Adoption(module(("3", 1), newest="3"), ("7", "6", "5", "4", "3"), ())
    assert adoption_inks(five) == ("c1", "c2", "c3", "c4", "accent")


def test_the_same_picture_has_the_same_bytes() -> None:
    assert versions_picture(module(("1", 1))) == versions_picture(module(("1", 1)))
