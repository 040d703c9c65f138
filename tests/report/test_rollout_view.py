"""The map of products and modules, and the details for the script: bounded, and no text in them is markup."""

from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.report import rollout_view
from auditor.report.builder import build_report
from auditor.report.rollout_view import GLYPHS, SHADES, arrange_heat_map, encode_json, list_state_filters
from tests.report.fleets import EVIL, build_wide_run
from tests.runs.run_folders import build, named, ok

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


def test_filters_count_the_rows(tmp_path: Path) -> None:
    report = build_report(build_wide_run(tmp_path / "run", 5, 4, 3), now=NOW)
    filters = list_state_filters(report)
    assert filters[-1] == ("", "All", 20)
    by_state = {states: count for states, _, count in filters if states in GLYPHS}
    assert sum(by_state.values()) == 20
    assert all(by_state.values()), "zero is hidden"
