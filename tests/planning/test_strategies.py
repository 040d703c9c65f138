"""Comparison of strategies: costs follow from counts and quotas, and ages are those that the ranking leads to."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from hypothesis import given, reject
from hypothesis import settings as examples
from hypothesis import strategies as st

import auditor
from auditor.config.settings import FleetSource
from auditor.errors import SettingsError
from auditor.planning.bulk_reading import plan_as_configured
from auditor.planning.capacity import plan_devices
from auditor.planning.measurements import (
    CarryMeasurements,
    IncrementalStats,
    QueriedDevices,
    RunMeasurements,
    latest_measurements,
    measure_carry,
)
from auditor.planning.models import Plan, StrategyPlan
from auditor.planning.strategies import PlanningInputs, account_loads, answer_ages, compare_strategies
from auditor.runs.selection_info import Recheck
from auditor.selection.ranking import SelectionBudget, rank_by_priority
from auditor.simulator import operations
from auditor.simulator.responses import RequestRejected
from auditor.simulator.server import Simulator
from tests.integration.audits import plain_world
from tests.integration.test_audit import account_table, settings_for
from tests.planning.test_planner import measurements, settings_of


def rows_of(
    settings: auditor.Settings,
    devices: Mapping[str, int],
    *,
    window: float | None = None,
    before: RunMeasurements | None = None,
    carry: CarryMeasurements | None = None,
    sizes: Mapping[str, Mapping[int, int]] | None = None,
) -> list[StrategyPlan]:
    plan = plan_devices(settings, devices, before, window)
    return list(
        compare_strategies(settings, plan, PlanningInputs(devices, sizes or {}, before, carry or CarryMeasurements()))
    )


def row_of(rows: list[StrategyPlan], strategy: str, **fields: object) -> StrategyPlan:
    (row,) = [
        each
        for each in rows
        if each.strategy == strategy and all(getattr(each, key) == value for key, value in fields.items())
    ]
    return row


def changed(settings: auditor.Settings, **fields: Any) -> auditor.Settings:
    return msgspec.structs.replace(settings, **fields)


@examples(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    devices_per_run=st.integers(1, 25),
    fair_share=st.sampled_from([1.0, 0.9, 0.5, 0.25, 0.1]),
    violating=st.integers(0, 2**20),
)
@pytest.mark.slow
def test_ranking_keeps_results_within_the_planned_ages(
    sizes: list[int], devices_per_run: int, fair_share: float, violating: int
) -> None:
    ages = answer_ages(Counter(sizes), devices_per_run, fair_share)
    if ages is None:
        reject()
    oldest, mean = ages
    database = duckdb.connect()
    database.execute(
        "CREATE TABLE candidates (position INT, product_key VARCHAR);"
        "CREATE TABLE results (position INT, run INT, violating BOOLEAN)"
    )
    places = [product for product, size in enumerate(sizes) for _ in range(size)]
    database.executemany("INSERT INTO candidates VALUES (?, ?)", [[at, f"k{key}"] for at, key in enumerate(places)])
    database.executemany(
        "INSERT INTO results VALUES (?, -1, ?)", [[at, bool(violating >> at & 1)] for at in range(len(places))]
    )
    for run in range(2 * oldest + 3):
        database.execute("""
          CREATE OR REPLACE TABLE with_reason AS
          SELECT position, position AS previous_row, false AS renamed, 'ok' AS status, violating, 0 AS change_count,
            TIMESTAMP '2026-01-02' + to_days(run) AS audited_at, NULL::TIMESTAMP AS failed_at,
            'oldest' AS selection_reason
          FROM results""")
        rank_by_priority(database, SelectionBudget(devices_per_run, fair_share, devices_per_run))
        database.execute("UPDATE results SET run = $1 WHERE position IN (SELECT position FROM ranked)", [run])
        database.execute("DROP TABLE ranked")
        if run > oldest:
            found = database.execute("SELECT $1 - min(run), $1 - avg(run) FROM results", [run]).fetchall()[0]
            assert found[0] <= oldest
            assert found[1] <= mean + 1e-9


def test_ages_are_half_a_cycle_on_average_and_one_run_less_than_a_cycle_at_most() -> None:
    assert answer_ages({1000: 1}, 100, 1.0) == (9, 4.5)
    assert answer_ages({1000: 1}, 100, 0.5) == (19, 9.5)
    assert answer_ages({1000: 1}, 1000, 0.5) == (0, 0.0)
    assert answer_ages({1000: 1}, 100, 0.0) is None


def test_age_is_unbounded_with_too_many_products_for_a_turn_each() -> None:
    assert answer_ages({10: 100}, 50, 0.9) is None
    assert answer_ages({10: 100}, 100, 0.9) == (9, 4.5)  # one of each


@pytest.mark.parametrize("sizes", [{}, {"a0": {1000: 90, 4: 1000}, "a1": {6000: 1}}])
def test_window_for_an_age_is_sufficient_and_minimal(
    sizes: dict[str, dict[int, int]],
) -> None:
    settings, devices = settings_of((10, 1), (3, 0.5)), {"a0": 94_000, "a1": 6_000}
    before = measurements({"a0": QueriedDevices(10, 13)})
    rows = [row for row in rows_of(settings, devices, before=before, sizes=sizes) if row.strategy == "rolling"]
    assert [row.max_age_runs for row in rows] == [1, 3, 7]
    for row in rows:
        assert row.window is not None
        same = row_of(rows_of(settings, devices, before=before, sizes=sizes, window=row.window), "rolling")
        assert same == replace(row, fits=True)
        shorter = row_of(rows_of(settings, devices, before=before, sizes=sizes, window=row.window - 1), "rolling")
        assert shorter.max_age_runs is None or shorter.max_age_runs > (row.max_age_runs or 0)


def test_call_budget_is_divided_by_quota_and_pays_for_discovery() -> None:
    settings = changed(settings_of((30, 1), (10, 1)), max_calls=4_000, fair_share="100%")
    row = row_of(rows_of(settings, {"a0": 30_000, "a1": 20_000}), "rolling")
    assert (row.devices, row.calls, row.max_calls, row.window) == (4_000, 4_000, 4_000, None)
    assert row.seconds == round(3_000 / 29.1, 3)
    assert row.max_age_runs == 19
    assert row.mean_age_runs == pytest.approx((30 * 4.5 + 20 * 9.5) / 50)
    listed = tuple(msgspec.structs.replace(each, fleet=FleetSource(products="all")) for each in settings.account)
    row = row_of(rows_of(changed(settings, account=listed), {"a0": 30_000, "a1": 20_000}), "rolling")
    assert row.calls == 4_000 - 600 - 400


def test_smaller_of_window_and_budget_counts() -> None:
    settings = changed(settings_of((10, 1)), max_calls=1_000)
    assert row_of(rows_of(settings, {"a0": 9_700}, window=100), "rolling").calls == pytest.approx(970, abs=1)
    assert row_of(rows_of(settings, {"a0": 9_700}, window=500), "rolling").calls == 1_000


def test_without_a_baseline_every_device_is_queried_and_no_state() -> None:
    rows = [row for row in rows_of(settings_of((10, 1)), {"a0": 970}) if row.strategy == "incremental"]
    assert {(row.calls, row.seconds, row.max_age_runs, row.min_calls) for row in rows} == {(970, 100.0, 0, None)}


def test_without_incremental_statistics_a_lower_bound_is_given() -> None:
    carry = CarryMeasurements("20261122T020000Z-audit", {"a0": 9_000}, {})
    row = row_of(
        rows_of(settings_of((10, 0.5)), {"a0": 10_000}, carry=carry, window=60),
        "incremental",
        change_detection="strict",
    )
    # 9,000 states, 50 a call; 1,000 without a result in the run; 1% of the carried
    assert (row.calls, row.min_calls, row.devices) == (None, 180 + 1_000 + 90, None)
    assert row.min_seconds == pytest.approx(180 / 24.25 + 1_090 / 4.85, abs=0.01)
    assert (row.seconds, row.fits) == (None, False)  # the lower bound is too much already
    assert (
        row_of(
            rows_of(settings_of((10, 0.5)), {"a0": 10_000}, carry=carry, window=900),
            "incremental",
            change_detection="strict",
        ).fits
        is None
    )


def test_incremental_calls_are_estimated_from_a_run_with_the_same_rule() -> None:
    recheck = Recheck(8_000, 80, 80, 2, 0.025, 0.003, 0.086)
    by_rule: dict[Any, IncrementalStats] = {"reconnected": IncrementalStats("run-a", {"a0": 0.2}, "run-b", recheck)}
    rows = rows_of(settings_of((10, 1)), {"a0": 10_000}, carry=CarryMeasurements("run-b", {"a0": 10_000}, by_rule))
    row = row_of(rows, "incremental", change_detection="reconnected")
    assert (row.devices, row.calls, row.min_calls) == (2_080, 200 + 2_080, None)
    assert (row.run, row.recheck_run) == ("run-a", "run-b")
    assert (row.recheck_rate, row.recheck_low, row.recheck_high) == (0.025, 0.003, 0.086)
    assert row_of(rows, "incremental", change_detection="strict").calls is None


@pytest.mark.parametrize("quota", ["unlimited", "auto"])
def test_without_a_quota_there_is_no_time_and_no_window(quota: str) -> None:
    carry = CarryMeasurements("run", {"a0": 100, "a1": 100}, {})
    rows = rows_of(settings_of((10, 1), (quota, 1)), {"a0": 100, "a1": 100}, carry=carry)
    assert {row.seconds for row in rows} == {row.min_seconds for row in rows} == {None}
    assert not [row for row in rows if row.strategy == "rolling"]
    timed = row_of(rows_of(settings_of((10, 1), (quota, 1)), {"a0": 100, "a1": 100}, window=9), "rolling")
    assert (timed.calls, timed.max_age_runs, timed.fits) == (None, None, None)


def test_sample_has_the_textbook_width_with_the_finite_population_correction() -> None:
    rows = rows_of(changed(settings_of((10, 1)), sample_size=10_000), {"a0": 40_000})
    row = row_of(rows, "sample", sample_size=10_000)
    assert (row.calls, row.seconds) == (10_000, round(10_000 / 9.7, 3))
    assert row.half_width == pytest.approx(1.96 * math.sqrt(0.25 / 10_000 * 0.75), rel=0.001)
    # n = N * 9604 / (N + 9604), Cochran's
    precise = row_of(rows, "sample", precision=0.01)
    assert precise.calls == pytest.approx(40_000 * 9_604 / 49_604, rel=0.001)
    assert precise.half_width is not None
    assert precise.half_width <= 0.01


def test_sample_larger_than_the_fleet_is_the_fleet_and_not_compared_by_default() -> None:
    rows = rows_of(settings_of((10, 1)), {"a0": 500})
    assert [row.precision for row in rows if row.strategy == "sample"] == [0.01]
    row = row_of(rows_of(changed(settings_of((10, 1)), sample_size=10_000), {"a0": 500}), "sample", sample_size=10_000)
    assert (row.calls, row.half_width) == (500, 0.0)


def test_product_shares_need_more_devices_and_module_shares_at_least_as_many() -> None:
    settings, devices, sizes = settings_of((10, 1)), {"a0": 30_000}, {"a0": {10_000: 3}}

    def precise(level: str) -> StrategyPlan:
        rows = rows_of(changed(settings, precision="3%", precision_of=level), devices, sizes=sizes)
        return row_of(rows, "sample", precision=0.03)

    fleet, module, product = precise("fleet"), precise("module"), precise("product")
    assert (module.calls, module.min_calls) == (None, fleet.calls)
    assert product.calls == pytest.approx(3 * 10_000 * 1_067.1 / 11_067.1, abs=9)


def test_empty_accounts_and_single_device_fleets_are_planned() -> None:
    for devices in ({}, {"a0": 1}, {"a1": 2}):
        for window in (None, 5):
            rows = rows_of(settings_of((10, 1), (1, 1)), devices, window=window)
            assert rows[0].devices == sum(devices.values())
            assert all(row.calls is None or row.calls <= max(1, rows[0].devices) for row in rows)


@pytest.mark.slow
@pytest.mark.anyio
async def test_incremental_run_improves_the_next_plan(tmp_path: Path) -> None:
    world = plain_world(400)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        table = account_table(platform.endpoint, tmp_path, calls_per_second=500)
        settings = settings_for(tmp_path, table)
        first = await auditor.run_audit(settings)
        before = row_of(list(auditor.plan_audit(settings).strategies), "incremental", change_detection="reconnected")
        second = await auditor.run_audit(changed(settings, since="last", change_detection="reconnected", recheck="10%"))
    assert before.min_calls == 8 + 4
    carry = measure_carry(first.folder.parent, settings.name)
    assert carry.answered is not None
    assert list(carry.answered.values()) == [400]
    selection = second.manifest.selection
    assert selection is not None
    (account,) = selection.accounts
    row = row_of(list(auditor.plan_audit(settings).strategies), "incremental", change_detection="reconnected")
    connected = sum(number for reason, number in account.selected.items() if reason != "recheck")
    assert row.devices == connected + math.floor(0.01 * (400 - connected))
    assert (row.run, row.recheck_run) == (second.folder.name, second.folder.name)


@pytest.mark.parametrize("wrong", [{"max_calls": 0}, {"sample_size": 0}, {"precision": "1"}, {"precision": "60%"}])
def test_invalid_comparisons_are_rejected(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"^plan: {next(iter(wrong))}: "):
        auditor.plan_audit(settings_for(tmp_path, account_table("http://127.0.0.1:1/", tmp_path)), **wrong)


def test_budget_and_sample_are_compared_though_they_exclude_each_other_in_a_run(tmp_path: Path) -> None:
    plain_world(30).write_fleet(tmp_path / "fleet.csv")
    settings = settings_for(tmp_path, account_table("http://127.0.0.1:1/", tmp_path, calls_per_second=10))
    rows = list(auditor.plan_audit(changed(settings, max_calls=20), sample_size=10, precision="5%").strategies)
    assert row_of(rows, "rolling").max_calls == 20
    assert (row_of(rows, "sample", sample_size=10).calls, row_of(rows, "sample", precision=0.05).calls) == (10, 30)


def test_an_index_costs_a_call_for_49_devices_and_its_recheck() -> None:
    settings = settings_of((10.0, 1.0))
    assert not any(row.strategy == "index" for row in rows_of(settings, {"a0": 1_000}))
    indexed = [
        msgspec.structs.replace(each, read="index", fleet=FleetSource(products="all")) for each in settings.account
    ]
    read = changed(settings, account=tuple(indexed), recheck="1%")
    sizes = {"a0": {500: 2}}
    row = row_of(rows_of(read, {"a0": 1_000}, sizes=sizes), "index")
    assert (row.devices, row.calls) == (10, 10 + 2 * (500 // 49 + 1))
    full = row_of(rows_of(read, {"a0": 1_000}, sizes=sizes), "full")
    assert row.seconds is not None
    assert full.seconds is not None
    assert row.seconds < full.seconds / 20


def listed(settings: auditor.Settings, **fields: Any) -> auditor.Settings:
    accounts = [msgspec.structs.replace(each, fleet=FleetSource(products="all"), **fields) for each in settings.account]
    return changed(settings, account=tuple(accounts))


def configured_plan(
    settings: auditor.Settings,
    devices: int,
    before: RunMeasurements | None = None,
    window: float | None = None,
    sizes: Mapping[int, int] | None = None,
) -> Plan:
    inputs = PlanningInputs({"a0": devices}, {"a0": sizes or {devices: 1}}, before, CarryMeasurements())
    plan = plan_devices(settings, {"a0": devices}, before, window)
    return plan_as_configured(settings, plan, account_loads(settings, inputs))


def test_the_verdict_follows_the_configured_reading() -> None:
    settings = settings_of((1.0, 1.0))
    assert configured_plan(settings, 3_000, window=600).fits is False
    details = configured_plan(changed(settings, modules=("default",)), 3_000, window=600, sizes={150: 2, 2_700: 1})
    index = configured_plan(changed(listed(settings, read="index"), recheck="1%"), 3_000, window=600, sizes={1_500: 2})
    assert (details.calls, index.calls) == (2 * 2 + 27, 30 + 2 * (1_500 // 49 + 1))
    for plan, kind in ((details, "details"), (index, "index")):
        (account,) = plan.accounts
        assert (account.read, plan.fits, account.fits, account.remedy) == (kind, True, True, None)
        assert account.calls_per_device == plan.calls / 3_000
    # It may have to query all devices, so only that is certain.
    auto = configured_plan(listed(settings, read="auto"), 3_000, window=600)
    assert (auto.calls, auto.fits, auto.accounts[0].read) == (3_000, False, "device")


@pytest.mark.parametrize("one_by_one", [0, 60])
@pytest.mark.parametrize("window", [1, 200, 1_000])
def test_a_plan_of_details_that_follows_the_advice_fits(one_by_one: int, window: float) -> None:
    settings = changed(settings_of((1.0, 0.01)), modules=("default",))
    before = measurements({"a0": QueriedDevices(1_000, 1_060, one_by_one)})
    remedy = configured_plan(settings, 10_000, before, window).accounts[0].remedy
    assert remedy is not None
    assert (remedy.devices > 0) is (window > 100)
    if remedy.devices:
        assert configured_plan(settings, remedy.devices, before, window).fits
    if remedy.quota_share is not None:
        (account,) = settings.account
        larger = changed(settings, account=(msgspec.structs.replace(account, quota_share=remedy.quota_share),))
        assert configured_plan(larger, 10_000, before, window).fits


def test_details_cost_the_devices_too_that_the_previous_run_queried_one_by_one() -> None:
    settings = changed(settings_of((10.0, 1.0)), modules=("default",))
    before = measurements({"a0": QueriedDevices(1_000, 1_060, 60)})
    row = row_of(rows_of(settings, {"a0": 10_000}, before=before), "details")
    assert (row.devices, row.calls, row.run) == (10_000, 100 + 600, before.folder.name)
    assert row_of(rows_of(settings, {"a0": 10_000}), "details").calls == 100
    plan = configured_plan(settings, 10_000, before)
    assert (plan.calls, plan.seconds) == (row.calls, row.seconds)


@pytest.mark.anyio
async def test_devices_that_details_did_not_decide_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Any:
        raise RequestRejected("Forbidden.RAM", "refused", 403)

    found = []
    for directory in ("answered", "refused"):
        async with Simulator(plain_world(30)) as platform:
            account = account_table(platform.endpoint, tmp_path, fleet={"products": "all"})
            settings = settings_for(tmp_path, account, modules=["default"], directory=str(tmp_path / directory))
            await auditor.run_audit(settings)
        measured = latest_measurements(tmp_path / directory, settings.name)
        assert measured is not None
        found += [(each.devices, each.one_by_one) for each in measured.queried.values()]
        monkeypatch.setattr(operations, "device_details", refuse)
    assert found == [(30, 0), (30, 30)]
