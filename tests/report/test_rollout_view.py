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
    describe_states,
    encode_details,
    encode_json,
    list_state_filters,
)
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
        assert cell.text.endswith("?" if rollout.share is None else str(int(100 * rollout.share)))
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
