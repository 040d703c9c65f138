"""The map of products and modules, and the details for the script: bounded, and no text in them is markup."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.analysis.rollout_states import DEFAULT_THRESHOLDS
from auditor.analysis.rollouts import rollouts_of
from auditor.report import rollout_view
from auditor.report.builder import build_report
from auditor.report.render import render_html
from auditor.report.rollout_view import (
    GLYPHS,
    SHADES,
    arrange_heat_map,
    describe_rollouts,
    describe_states,
    encode_details,
    encode_json,
    list_state_filters,
)
from auditor.report.tiles import list_tiles
from tests.report.fleets import EVIL, build_wide_run
from tests.report.pages import parse_html
from tests.runs.run_folders import build, edit_manifest, named, ok

NOW = datetime(2026, 11, 24, 5, tzinfo=UTC)


@given(
    st.recursive(st.text() | st.integers(0, 2**50) | st.none(), lambda each: st.lists(each, max_size=4), max_leaves=9)
)
def test_json_is_the_value_and_has_no_character_of_markup(value: object) -> None:
    text = encode_json([value, "</script><!--", EVIL, "\u2028"])
    assert not set("<>&\u2028\u2029") & set(text)
    assert orjson.loads(text) == [value, "</script><!--", EVIL, "\u2028"]


def test_map_has_the_largest_products_and_modules_and_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = build_report(build_wide_run(tmp_path / "run", 60, 20, 3), now=NOW)
    heat = arrange_heat_map(report, 10)
    assert (len(heat.rows), len(heat.modules), heat.products) == (40, 16, 60)
    cells = [cell for row in heat.rows for cell in row.cells if cell is not None]
    assert len(cells) == 640
    assert {cell.link for cell in cells if cell.number < 10} <= {f"rollout-{number}" for number in range(10)}
    assert {cell.link for cell in cells if cell.number >= 10} == {"rollouts"}
    for cell in cells:
        rollout = report.rollouts.rollouts[cell.number].rollout
        assert cell.text.endswith("?" if rollout.share is None else str(round(100 * rollout.share)))
        assert cell.shade in {*SHADES, "back", "unknown"}
        assert rollout.module_name in cell.label
    monkeypatch.setattr(rollout_view, "MAX_MAP_BYTES", 20_000)
    assert 0 < len(arrange_heat_map(report, 10).rows) < 10


def test_darker_cells_have_larger_shares(tmp_path: Path) -> None:
    fleet = [named(n, product=f"p{n // 20:02}") for n in range(20 * 20)]
    answers = [ok(device, ("ble", "2" if n % 20 < n // 20 else "1")) for n, device in enumerate(fleet)]
    report = build_report(build(tmp_path / "run", fleet, answers).folder, now=NOW)
    heat = arrange_heat_map(report, 99)
    found = sorted((report.rollouts.rollouts[c.number].rollout.share or 0, SHADES.index(c.shade)) for row in heat.rows for c in row.cells if c)  # fmt: skip
    assert len(found) == 20
    assert [shade for _, shade in found] == sorted(shade for _, shade in found)
    assert found[0] == (0.05, 1)


def test_the_map_has_the_names_of_modules_as_devices_report_them(tmp_path: Path) -> None:
    fleet = [named(0), named(1, product="p2")]
    answers = [ok(device, ("Sensor-Hub", "1"), ("ble", "1")) for device in fleet]
    heat = arrange_heat_map(build_report(build(tmp_path / "run", fleet, answers).folder, now=NOW), 99)
    assert heat.modules == ("ble", "Sensor-Hub")


def test_cells_are_rounded_and_100_means_all(tmp_path: Path) -> None:
    shares = {"p0": (236, 1000), "p1": (999, 1000), "p2": (1, 1000), "p3": (5, 5), "p4": (87, 1000)}
    fleet = [named(1000 * at + n, product=p) for at, (p, (_, of)) in enumerate(shares.items()) for n in range(of)]
    answers = [
        ok(device, ("ble", "2" if int(device.device_name[6:]) % 1000 < shares[device.product_key][0] else "1"))
        for device in fleet
        if device.device_name is not None and device.product_key is not None
    ]
    heat = arrange_heat_map(build_report(build(tmp_path / "run", fleet, answers).folder, now=NOW), 99)
    cells = {row.product_key: cell.text for row in heat.rows for cell in row.cells if cell is not None}
    assert cells == {"p0": "24", "p1": "99", "p2": "1", "p3": "100", "p4": "9"}


def test_devices_of_a_product_in_the_map_are_those_of_the_page(tmp_path: Path) -> None:
    fleet = [named(n, product=f"p{n % 2}") for n in range(20)]
    answers = [ok(device, *[("ble", "1")] * (n < 14)) for n, device in enumerate(fleet[:18])]
    heat = arrange_heat_map(build_report(build(tmp_path / "run", fleet, answers).folder, now=NOW), 99)
    assert {row.product_key: row.devices for row in heat.rows} == {"p0": 10, "p1": 10}


@pytest.mark.parametrize(
    ("products", "names", "is_short", "turned"),
    [(4, 9, True, False), (4, 16, True, True), (30, 4, False, False), (30, 9, False, True)],
)
def test_headings_are_turned_where_they_have_no_room(
    tmp_path: Path,
    products: int,
    names: int,
    is_short: bool,  # noqa: FBT001
    turned: bool,  # noqa: FBT001
) -> None:
    fleet = [named(n, product=f"p{n}") for n in range(products)]
    modules = [(f"module-{n:03}", "1") for n in range(names)]
    report = build_report(build(tmp_path / "run", fleet, [ok(each, *modules) for each in fleet]).folder, now=NOW)
    heat = arrange_heat_map(report, 99)
    assert (heat.is_short, heat.has_long_names) == (is_short, turned)
    page = render_html(report)
    assert (' stacked"' in page, 'class="heat turned"' in page) == (is_short, turned)
    assert "<span>module-000</span>" in page, "whole"


def test_moving_rollouts_and_those_of_other_states_add_up_to_all(tmp_path: Path) -> None:
    report = build_report(build_wide_run(tmp_path / "run", 5, 4, 3), now=NOW)
    tile = next(each for each in list_tiles(report) if each.title == "Rollouts moving")
    assert tile.text == "0 of 20"
    assert sum(each.count for each in tile.counts_below if each.figure.startswith("rollouts.")) == 20
    assert describe_rollouts(report) == "none active of 20"


def test_filters_count_the_rows(tmp_path: Path) -> None:
    report = build_report(build_wide_run(tmp_path / "run", 5, 4, 3), now=NOW)
    for shown in (20, 7):
        filters = list_state_filters(report, shown)
        assert filters[0] == ("", "All", shown), "no rollout is active"
        by_state = {states: count for states, _, count in filters if states in GLYPHS}
        assert sum(by_state.values()) == shown
        assert all(by_state.values()), "zero is hidden"


def test_details_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = build_report(build_wide_run(tmp_path / "run", 5, 4, 3, prefix="版本"), now=NOW)
    monkeypatch.setattr(rollout_view, "MAX_DETAIL_BYTES", 4_000)
    head = len('{"runs":["20 Nov"],"modules":[]}')
    found = encode_details(report)
    assert 2_000 < len(found.encode()) <= 4_000 + head + found.count("},{")


@pytest.mark.slow
def test_totals_are_those_of_all_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_wide_run(tmp_path / "run", 60, 3, 3)
    whole = build_report(folder, now=NOW).rollouts
    assert (len(whole.rollouts), whole.total) == (180, 180)
    monkeypatch.setitem(rollouts_of.__kwdefaults__, "limit", 12)  # type: ignore[arg-type]
    monkeypatch.setattr("auditor.report.rollouts.MAX_ROLLOUTS", 12)
    edit_manifest(folder, lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=180)))
    without_states = build_report(folder, now=NOW)
    edit_manifest(folder, lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=None)))
    for report in (build_report(folder, now=NOW), without_states):
        found = report.rollouts
        assert (len(found.rollouts), found.total) == (12, 180)
        assert (found.ages, found.devices, found.on_target) == (whole.ages, whole.devices, whole.on_target)
        text = parse_html(render_html(report)).text
        assert "168 more rollouts do not fit" in text
        assert "largest of 60 products" in text


def test_definition_names_the_thresholds() -> None:
    text = describe_states(replace(DEFAULT_THRESHOLDS, stalled_after=1.0))
    assert text.startswith("The first rule that applies decides.")
    assert " in 1 day." in text
    assert "never reached" in text
